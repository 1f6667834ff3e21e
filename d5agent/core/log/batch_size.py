"""How many events of the stream are asked for at once: as many as fit into memory, and as come in time.

A server that looks up each document may need 30 ms for one, and a line may be slow. Asked again for as many, it would
not answer in time again. So an answer that does not come halves what is asked for next, and each one that is late tells
how many would have been in time. What is asked for grows back slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST_EVENTS: Final = 10_000
_FIRST_EVENTS: Final = 1_000
_BATCH_BYTES: Final = 8 * 1024 * 1024  # a reply may be 16 MB, and stands in memory three times while it is read
_LATE: Final = 1 / 3  # of the time that an answer may take
_GROWTH: Final = 8  # a full batch in time lets the next one be larger by this part
_MOST_SECONDS: Final = 300.0  # for one event of 16 MB: a line of 64 KB/s


@dataclass(slots=True, kw_only=True)
class BatchSize:
    """What to ask for next: `events` at most, to come within `seconds`. `answer_seconds`: how long that is normally."""

    answer_seconds: float
    events: int = _FIRST_EVENTS
    seconds: float = 0.0
    _in_time: int = MOST_EVENTS

    def __post_init__(self) -> None:
        """Begin with the normal time."""
        self.seconds = self.answer_seconds

    def note_silence(self, asked: int) -> None:
        """Note that no answer came: half as many events next; a single one may take twice as long."""
        if asked > 1:
            self.events = self._in_time = asked // 2
        else:
            self.seconds = min(2 * self.seconds, _MOST_SECONDS)

    def note_answer(self, *, asked: int, came: int, seconds: float) -> None:
        """Note how long an answer took."""
        if not came:
            return
        self.seconds = max(self.answer_seconds, min(2 * seconds, _MOST_SECONDS))
        late = self.answer_seconds * _LATE
        if seconds > late:
            self._in_time = max(1, min(self._in_time, int(came * late / seconds)))
        elif came >= asked:
            self._in_time = min(MOST_EVENTS, self._in_time + max(1, self._in_time // _GROWTH))
        self.events = min(self.events, self._in_time)

    def fit(self, average: float | None) -> None:
        """Fit to events of that many bytes on average; None: as before."""
        wanted = self.events if average is None else max(1, int(_BATCH_BYTES / average))
        self.events = min(wanted, self._in_time)
