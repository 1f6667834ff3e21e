"""Keeps a library from loading rich, which draws tables and tracebacks for a terminal: the daemon has none."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

_DRAWING: Final = ("rich.console", "rich.pretty", "rich.traceback")


@contextmanager
def without_rich() -> Iterator[None]:
    """Let what is imported in the block find rich missing, as far as it is not loaded yet.

    A None in sys.modules is how the import system is told that a module is missing. rich is optional to structlog,
    which would load it for tracebacks that nobody asks for (ADR 50).
    """
    known = cast("dict[str, object]", sys.modules)
    hidden = [name for name in _DRAWING if name not in known]
    known.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            known.pop(name, None)
