"""Keys in what people read, as addresses: nobody must look up bucket and prefix before an object can be read.

Inside, an object has a key, relative to bucket and prefix. The two places where words leave the agent, its journal and
its command line, pass them through here. So no error, hint or event has to think of it, however deep it is made.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_RUN: Final = r"(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|no-run)"
_PLAIN: Final = r"[A-Za-z0-9_.~%/-]"
_KEYS: Final = re.compile(
    # Not within an address or a path; a full stop behind a key ends a sentence.
    rf"(?<![\w/.:~%-])(?:(?:reports|dump|dead-letter|archive)/{_RUN}(?:/(?:{_PLAIN}*[A-Za-z0-9/])?)?"
    rf"|replication/\.log/{_PLAIN}*[A-Za-z0-9]"
    rf"|replication/(?:{_PLAIN}+/)?[^/\s]+/\d{{10}}-\d{{10}}_{_PLAIN}*[A-Za-z0-9]"
    r"|state/[a-z_]+(?:\.json)?(?![\w/]))"
)
_EXACT: Final = frozenset({"key", "keys", "report"})
"""Fields of JSON that hold keys as they are; the field with the address is beside them."""


def with_addresses(text: str, url_of: Callable[[str], str]) -> str:
    """Return a text in which each key of the bucket is the address of its object."""
    return _KEYS.sub(lambda found: url_of(found[0]), text) if "/" in text else text


def addressed(value: Any, url_of: Callable[[str], str], *, exact: frozenset[str] = frozenset()) -> Any:  # noqa: ANN401 -- JSON values
    """Return a value with addresses in all its texts, but for the fields that `exact` names."""
    if isinstance(value, str):
        return with_addresses(value, url_of)
    if isinstance(value, dict):
        return {name: one if name in exact else addressed(one, url_of, exact=exact) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [addressed(one, url_of, exact=exact) for one in value]
    return value


def addressed_json(values: dict[str, Any], url_of: Callable[[str], str]) -> dict[str, Any]:
    """Return what a verb prints as JSON: texts with addresses; fields that are keys stay keys."""
    answer: dict[str, Any] = addressed(values, url_of, exact=_EXACT)
    return answer
