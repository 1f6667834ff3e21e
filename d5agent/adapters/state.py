"""The StateStore: small JSON files, each replaced whole, mirrored to the object store for a lost host."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from d5agent.errors import CorruptDataError, OperatorError, TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from pathlib import Path

    from d5agent.ports import ObjectStore

MIRROR: Final = "state/"
_OWNER: Final = "mirrored_by"
_REVISION: Final = "revision"
_MOST_SWAPS: Final = 5  # each that fails means that another one has written in between
_HINT_GARBAGE: Final = (
    "move the file aside: the agent then takes its mirror under state/ in the bucket; the stored operations are whole"
)
_HINT_GARBAGE_MIRROR: Final = (
    "bring back the object's version before (bucket versioning); the stored operations are whole"
)


def read_state_file(path: Path) -> dict[str, Any] | None:
    """Return the content of a state file; None: there is none. CorruptDataError: it is no state."""
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError("a state file cannot be read", hint="mend its rights", path=path) from error
    return _parsed(body, str(path))


def write_state_file(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a state file: written beside, flushed to disk, renamed, the folder flushed."""
    beside = path.with_suffix(".new")
    try:
        with beside.open("wb") as file:
            file.write(_encoded(value))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OperatorError(
            "a state file cannot be written",
            hint="free space on the disk, or mend the directory's rights ([state] directory); then start again",
            path=path,
            reason=error.strerror,
        ) from error


class MirroredStateStore:
    """State files in a directory, each put into the object store as well.

    Once it has taken the mirrors over, each says whose it is, and is replaced only as it was seen: what an earlier
    holder of the log still writes when it wakes up is refused by the store, or by `confirm`. Each saved state has a
    number, which grows over all of them: an old copy of the directory is told by that from a newer mirror.
    """

    def __init__(self, directory: Path, store: ObjectStore) -> None:
        self._directory = directory
        self._store = store
        self._owner = ""
        self._confirm: Callable[[], Awaitable[None]] | None = None
        self._seen: dict[str, bytes] = {}
        self._revision = 0

    async def take_over(
        self, names: Iterable[str], *, owner: str, confirm: Callable[[], Awaitable[None]], from_another: bool
    ) -> None:
        """Make the mirrors ours. Where they are newer than the disk, or `from_another`, the disk becomes what they are.

        `confirm` is asked where a mirror is not ours; it raises when the log is no longer.
        """
        self._owner, self._confirm = owner, confirm
        local = {name: read_state_file(self._path(name)) or {} for name in names}
        mirrors = {name: await self._read_mirror(name) or {} for name in local}
        here, there = (max(map(_revision_of, states.values())) for states in (local, mirrors))
        self._revision = max(here, there)
        takes_mirrors = any(mirrors.values()) and (from_another or there > here)
        if takes_mirrors:
            for name in (name for name, mirror in mirrors.items() if not mirror):
                self._path(name).unlink(missing_ok=True)
        # The newest last: a crash in between leaves a disk that is older than the mirrors still.
        for name in sorted(local, key=lambda name: _revision_of(mirrors[name])):
            await self._claim(name, takes_mirror=takes_mirrors)

    async def _claim(self, name: str, *, takes_mirror: bool) -> None:
        for _ in range(_MOST_SWAPS):
            found = await self._store.get(self._key(name))
            mirror = None if found is None else self._parsed_mirror(found, name)
            local = read_state_file(self._path(name))
            value = mirror if takes_mirror or local is None else local
            if value is None:
                return
            body = _encoded({**value, _OWNER: self._owner})
            if await self._swap(name, found, body):
                self._seen[name] = body
                if value is mirror:
                    write_state_file(self._path(name), value)
                return
        raise TransientError("a state's mirror keeps changing", hint="which other agent writes it?", name=name)

    async def load(self, name: str) -> dict[str, Any] | None:
        """Return a state: the local file, or, on a new disk, its mirror."""
        state = read_state_file(self._path(name))
        if state is None:
            state = await self._read_mirror(name)
        if state is not None:
            state.pop(_REVISION, None)
        return state

    async def save(self, name: str, value: Mapping[str, Any], *, mirrors: bool = True) -> None:
        """Replace a state on disk, then in the mirror, if that is to follow at once."""
        self._revision += 1
        numbered = {**value, _REVISION: self._revision}
        write_state_file(self._path(name), numbered)
        if mirrors:
            await self._mirror(name, _encoded({**numbered, _OWNER: self._owner} if self._owner else numbered))

    async def delete(self, name: str) -> None:
        """Remove a state: the mirror first, or a new disk would bring it back."""
        await self._store.delete([self._key(name)])
        self._seen.pop(name, None)
        self._path(name).unlink(missing_ok=True)

    async def _mirror(self, name: str, body: bytes) -> None:
        if self._confirm is None:
            await self._store.put(self._key(name), body)
            return
        found = self._seen.get(name)
        for _ in range(_MOST_SWAPS):
            if await self._swap(name, found, body):
                self._seen[name] = body
                return
            # A put of ours that timed out may have been stored. Or the mirror is another's now, and so is the log.
            found = await self._store.get(self._key(name))
            await self._confirm()
        raise TransientError("a state's mirror keeps changing", hint="which other agent writes it?", name=name)

    async def _swap(self, name: str, found: bytes | None, body: bytes) -> bool:
        if found is None:
            return await self._store.put_once(self._key(name), body)
        return await self._store.put(self._key(name), body, replacing=found)

    async def _read_mirror(self, name: str) -> dict[str, Any] | None:
        body = await self._store.get(self._key(name))
        return None if body is None else self._parsed_mirror(body, name)

    def _parsed_mirror(self, body: bytes, name: str) -> dict[str, Any]:
        value = _parsed(body, self._key(name), hint=_HINT_GARBAGE_MIRROR)
        value.pop(_OWNER, None)
        return value

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _key(self, name: str) -> str:
        return f"{MIRROR}{name}.json"


def _revision_of(state: Mapping[str, Any]) -> int:
    """Return a state's number; one of an earlier version, and one that is missing, comes before all others."""
    found = state.get(_REVISION, 0)
    return found if isinstance(found, int) else 0


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode(errors="backslashreplace") + b"\n"


def _parsed(body: bytes, where: str, *, hint: str = _HINT_GARBAGE) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise CorruptDataError("a state file is damaged", hint=hint, path=where) from error
    if not isinstance(value, dict) or not isinstance(value.get("version"), int):
        raise CorruptDataError("a state file is damaged: it has no version", hint=hint, path=where)
    return value
