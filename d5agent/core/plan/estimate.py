"""How long a restore will take, from what was measured while planning and what is known of writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from d5agent.core.log.operation import Operation

# Writing is not measured: a plan writes nothing. One small server here takes 20,000 upserts of 1 KB a second (bench/);
# over a network, and acknowledged by a majority on disk, a quarter of it is to be had.
_DOCUMENTS_PER_SECOND: Final = 5_000
_BYTES_PER_SECOND: Final = 16 * 1024 * 1024
_ENTRY_BYTES: Final = 200  # what a window counts for an entry beside its document (core/replay/replay.py)
_PASSES: Final = 2  # the log is read to be checked, and to be compared; while it is replayed, writing takes longer
MEASURED_DOCUMENTS: Final = 1_000  # written by an earlier restore, at least, for its rate to count


@dataclass(slots=True, kw_only=True)
class Writes:
    """How much would be written: the last state of each document in each window of `window_bytes`."""

    window_bytes: int
    documents: int = 0
    bytes: int = 0
    _window: set[int] = field(default_factory=set)
    _held: int = 0

    def take(self, operation: Operation) -> None:
        """Take an operation, in order."""
        if operation.document_id is None:
            self._window.clear()
            self._held = 0
            return
        entry = hash((operation.namespace, operation.document_id))
        if entry in self._window:
            return
        size = len(operation.document or b"")
        self._window.add(entry)
        self.documents += 1
        self.bytes += size
        self._held += size + _ENTRY_BYTES
        if self._held >= self.window_bytes:
            self._window.clear()
            self._held = 0


@dataclass(slots=True)
class Measured:
    """Something done, and how long it took in seconds."""

    done: int = 0
    seconds: float = 0.0

    def per_second(self) -> float | None:
        """Return the rate; None: nothing was done."""
        return self.done / max(self.seconds, 1e-6) if self.done else None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRate:
    """How fast an earlier restore of this bucket wrote: documents a second, and when that was."""

    documents_per_second: float
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds that restore takes, by part, and what each figure rests on."""

    reading_seconds: float
    writing_seconds: float
    comparing_seconds: float
    basis: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.reading_seconds + self.writing_seconds + self.comparing_seconds

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "seconds": round(self.seconds, 1),
            "reading_seconds": round(self.reading_seconds, 1),
            "writing_seconds": round(self.writing_seconds, 1),
            "comparing_seconds": round(self.comparing_seconds, 1),
            "basis": list(self.basis),
        }


def estimate(
    *, read: Measured, compared: Measured, writes: Writes, known: KnownRate | None, limit: float | None = None
) -> Estimate:
    """Return how long restore will take. `read`: operations of the log; `compared`: documents, on both sides.

    `limit`: `[restore] max_operations_per_second`, documents a second that restore writes at most.
    """
    reading, comparing = read.per_second(), compared.per_second()
    if known is None:
        writing = writes.documents / _DOCUMENTS_PER_SECOND + writes.bytes / _BYTES_PER_SECOND
        said = (
            f"writing {writes.documents:,} documents: assumed, {_DOCUMENTS_PER_SECOND:,} a second and 16 MiB a second;"
            " no earlier restore of this bucket tells better, and a plan writes nothing"
        )
    else:
        writing = writes.documents / known.documents_per_second
        said = (
            f"writing {writes.documents:,} documents: as fast as the restore of {known.at},"
            f" {known.documents_per_second:,.0f} a second"
        )
    if limit is not None and writes.documents / limit > writing:
        writing = writes.documents / limit
        said = f"writing {writes.documents:,} documents: [restore] max_operations_per_second allows {limit:,g} a second"
    return Estimate(
        reading_seconds=0.0 if reading is None else _PASSES * read.done / reading,
        writing_seconds=writing,
        comparing_seconds=0.0 if comparing is None else compared.done / comparing,
        basis=(
            f"reading the log twice, to check and to compare: measured, {reading or 0:,.0f} operations a second",
            said,
            f"comparing {compared.done:,} documents: measured, {comparing or 0:,.0f} a second",
        ),
    )
