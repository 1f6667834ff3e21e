"""The object stores and a state store in memory."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from d5agent.errors import OperatorError
from d5agent.ports import StoredObject
from tests.fakes.mortal import DiedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from d5agent.errors import AgentError


class FakeObjectStore:
    """Both kinds of objects, listed in the order of their keys' UTF-8 bytes and read, `page_size` at a time.

    `half_way`: the keys of uploads that are under way, or were when their process died. `tags`: of copies.
    """

    def __init__(self, *, page_size: int = 1000) -> None:
        self.objects: dict[str, bytes] = {}
        self.page_size = page_size
        self.half_way: list[str] = []
        self.tags: dict[str, dict[str, str]] = {}

    async def put_once(self, key: str, body: bytes) -> bool:
        if key in self.objects:
            return False
        self.objects[key] = body
        return True

    async def put(self, key: str, body: bytes, *, replacing: bytes | None = None) -> bool:
        if replacing is not None and self.objects.get(key) != replacing:
            return self.objects.get(key) == body
        self.objects[key] = body
        return True

    async def get(self, key: str) -> bytes | None:
        return self.objects.get(key)

    async def list_objects(self, prefix: str, *, after: str = "") -> AsyncGenerator[Sequence[StoredObject]]:
        keys = sorted((key for key in self.objects if key.startswith(prefix)), key=str.encode)
        keys = [key for key in keys if key.encode() > after.encode()]
        for at in range(0, len(keys), self.page_size):
            page = keys[at : at + self.page_size]
            yield [StoredObject(key=key, bytes=len(self.objects[key])) for key in page if key in self.objects]

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    async def copy(self, key: str, to: str, *, tags: Mapping[str, str]) -> str | None:
        if key not in self.objects:
            return None
        self.objects[to], self.tags[to] = self.objects[key], dict(tags)
        return hashlib.sha256(self.objects[to]).hexdigest()

    async def upload(self, key: str, chunks: AsyncGenerator[bytes]) -> None:
        self.half_way.append(key)
        try:
            body = b"".join([chunk async for chunk in chunks])
        except DiedError:
            raise  # nobody is left to abort it
        except BaseException:
            self.half_way.remove(key)
            raise
        self.half_way.remove(key)
        self.objects[key] = body

    async def read(self, key: str) -> AsyncGenerator[bytes]:
        if key not in self.objects:
            raise OperatorError("there is no such object", key=key)
        body = self.objects[key]
        for at in range(0, len(body), self.page_size):
            yield body[at : at + self.page_size]

    async def abort_uploads(self, prefix: str) -> int:
        found = [key for key in self.half_way if key.startswith(prefix)]
        self.half_way = [key for key in self.half_way if not key.startswith(prefix)]
        return len(found)


class RefusingStore(FakeObjectStore):
    """Refuses to put, or to delete, below some prefixes, as a role's policy does; `put_keys`: what was put."""

    def __init__(self, *, puts: Sequence[str] = (), deletes: Sequence[str] = ()) -> None:
        super().__init__()
        self.puts = puts
        self.deletes = deletes
        self.put_keys: list[str] = []

    @override
    async def put_once(self, key: str, body: bytes) -> bool:
        self._note(key)
        return await super().put_once(key, body)

    @override
    async def put(self, key: str, body: bytes, *, replacing: bytes | None = None) -> bool:
        self._note(key)
        return await super().put(key, body, replacing=replacing)

    @override
    async def upload(self, key: str, chunks: AsyncGenerator[bytes]) -> None:
        self._note(key)
        await super().upload(key, chunks)

    @override
    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:  # one that is missing, too
            self._judge(key, self.deletes)
        await super().delete(keys)

    def _note(self, key: str) -> None:
        self._judge(key, self.puts)
        self.put_keys.append(key)

    @staticmethod
    def _judge(key: str, refused: Sequence[str]) -> None:
        if any(key.startswith(prefix) for prefix in refused):
            raise OperatorError("S3 refused access to the bucket", hint="give the role s3:PutObject", key=key)


class DownStore(FakeObjectStore):
    """Answers whoever reads or puts an object with `error`, as long as there is one."""

    error: AgentError | None = None

    @override
    async def put_once(self, key: str, body: bytes) -> bool:
        self._answer()
        return await super().put_once(key, body)

    @override
    async def put(self, key: str, body: bytes, *, replacing: bytes | None = None) -> bool:
        self._answer()
        return await super().put(key, body, replacing=replacing)

    @override
    async def get(self, key: str) -> bytes | None:
        self._answer()
        return await super().get(key)

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error


class FakeStateStore:
    """States as the JSON text that a disk would hold, and their mirrors. `history`: every saved value, oldest first."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.mirrors: dict[str, str] = {}
        self.mirrored = 0
        self.history: list[tuple[str, dict[str, Any]]] = []

    async def load(self, name: str) -> dict[str, Any] | None:
        text = self.texts.get(name) or self.mirrors.get(name)
        if text is None:
            return None
        value: dict[str, Any] = json.loads(text)
        return value

    async def save(self, name: str, value: Mapping[str, Any], *, mirrors: bool = True) -> None:
        self.texts[name] = json.dumps(value)
        self.history.append((name, json.loads(self.texts[name])))
        if mirrors:
            self.mirrors[name] = self.texts[name]
            self.mirrored += 1

    async def delete(self, name: str) -> None:
        self.texts.pop(name, None)
        self.mirrors.pop(name, None)

    def lose_disk(self) -> None:
        """Let another host carry on: it has the mirrors only."""
        self.texts.clear()


class FullDisk(FakeStateStore):
    """Takes no state while it is full; `refused` counts those."""

    is_full = False
    refused = 0

    @override
    async def save(self, name: str, value: Mapping[str, Any], *, mirrors: bool = True) -> None:
        if self.is_full:
            self.refused += 1
            raise OperatorError("a state file cannot be written", hint="free space on the disk", path="/state")
        await super().save(name, value, mirrors=mirrors)
