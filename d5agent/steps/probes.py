"""Asks at the beginning for what is needed at the end: the right to store a result, hours before there is one."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from d5agent.ports import ObjectStore

_PROBE: Final = ".probe"


async def require_place(store: ObjectStore, folder: str, *, what: str) -> None:
    """Store an empty object in a folder, and remove it; OperatorError: `what` could not be stored there either.

    Without the right to delete it stays: whoever lists results knows them by their names.
    """
    try:
        await store.put(f"{folder}{_PROBE}", b"")
    except OperatorError as error:
        raise OperatorError(
            f"{what} could not be stored at the end, so nothing was begun: {error.message}",
            hint=error.hint,
            **error.facts,
        ) from error
    with suppress(OperatorError):
        await store.delete([f"{folder}{_PROBE}"])


async def require_deleting(store: ObjectStore, folder: str) -> None:
    """Delete an object that is not there; OperatorError: nothing may be deleted in this folder."""
    await store.delete([f"{folder}{_PROBE}"])
