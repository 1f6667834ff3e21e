"""An object store and a state store in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from d5agent.ports import StoredObject

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence


class FakeObjectStore:
    """Objects in a dictionary, listed in the order of their keys' UTF-8 bytes, `page_size` at a time."""

    def __init__(self, *, page_size: int = 1000) -> None:
        self.objects: dict[str, bytes] = {}
        self.page_size = page_size

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

    async def upload(self, key: str, chunks: AsyncGenerator[bytes]) -> None:
        self.objects[key] = b"".join([chunk async for chunk in chunks])


class FakeStateStore:
    """States as the JSON text that a disk would hold. `history` has every saved value, oldest first."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.history: list[tuple[str, dict[str, Any]]] = []

    async def load(self, name: str) -> dict[str, Any] | None:
        text = self.texts.get(name)
        if text is None:
            return None
        value: dict[str, Any] = json.loads(text)
        return value

    async def save(self, name: str, value: Mapping[str, Any], *, mirrors: bool = True) -> None:  # noqa: ARG002 -- one copy
        self.texts[name] = json.dumps(value)
        self.history.append((name, json.loads(self.texts[name])))

    async def delete(self, name: str) -> None:
        self.texts.pop(name, None)
