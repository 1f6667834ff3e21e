"""When each part of the log was compared: for the certificate, and bounded however long a restore follows the log."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST: Final = 50  # parts that are told apart; neighbours are told as one beyond it


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The documents that some commits touched, from `first` to `last`, and when they were compared."""

    first: int
    last: int
    documents: int
    began_at: str
    ended_at: str


@dataclass(slots=True, kw_only=True)
class Comparison:
    """All that was compared for one certificate.

    `final_pass`: when everything was compared once more without repair; empty: it was not needed. `watched_since`,
    `unchanged_at`: the target's change stream was read over that time, and nothing was left to compare at its end;
    empty: the target was not watched, for the reason `why_not_watched`, and every part was compared after the fence.
    """

    parts: list[Part] = field(default_factory=list)
    final_pass: str = ""
    watched_since: str = ""
    unchanged_at: str = ""
    why_not_watched: str = ""

    def add(self, part: Part) -> None:
        """Take a part; of many, neighbours are joined."""
        self.parts.append(part)
        if len(self.parts) > _MOST:
            self.parts = [_joined(self.parts[at : at + 2]) for at in range(0, len(self.parts), 2)]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def parts_from_json(cls, value: Sequence[dict[str, Any]]) -> Comparison:
        """Return a comparison with the parts of an earlier start."""
        return cls(parts=[Part(**part) for part in value])


def _joined(parts: Sequence[Part]) -> Part:
    return Part(
        first=parts[0].first,
        last=parts[-1].last,
        documents=sum(part.documents for part in parts),
        began_at=parts[0].began_at,
        ended_at=parts[-1].ended_at,
    )
