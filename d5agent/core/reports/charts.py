"""Charts as inline SVG: a bar for each thing that happened, a curve for each thing that was measured."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH: Final = 900
_LEFT: Final = 230  # where bars begin, right of their names
_ROW: Final = 22
_HEIGHT: Final = 180
_PAD: Final = 60
_SECONDS_A_MINUTE: Final = 60
_SECONDS_AN_HOUR: Final = 3600
_LARGE: Final = 10


def bars(spans: Sequence[dict[str, Any]]) -> str:
    """Return what happened as bars over time; spans of one name share a row."""
    begin = min(span["began"] for span in spans)
    length = max(max(span["began"] + span["seconds"] for span in spans) - begin, 1.0)
    scale = (_WIDTH - _LEFT - 10) / length
    rows = list(dict.fromkeys(span["what"] for span in spans))
    parts = []
    for row, what in enumerate(rows):
        y = row * _ROW + 4
        mine = [span for span in spans if span["what"] == what]
        parts.append(f'<text x="0" y="{y + 12}">{escape(what)}</text>')
        for span in mine:
            x, width = _LEFT + (span["began"] - begin) * scale, max(span["seconds"] * scale, 2)
            title = f"{what}: from {clock(span['began'])}, {duration(span['seconds'])}"
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{y}" width="{width:.1f}" height="14" rx="2">'
                f"<title>{escape(title)}</title></rect>"
            )
    bottom = len(rows) * _ROW + 8
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - 10}" y2="{bottom}"/>')
    parts.append(f'<text x="{_LEFT}" y="{bottom + 14}">{clock(begin)}</text>')
    parts.append(f'<text x="{_WIDTH - 10}" y="{bottom + 14}" text-anchor="end">{clock(begin + length)}</text>')
    return _svg(bottom + 20, "what happened when", parts)


def curve(points: Sequence[tuple[float, float]], *, label: str, unit: str) -> str:
    """Return a value over time: (seconds since 1970, value)."""
    begin, end = points[0][0], max(points[-1][0], points[0][0] + 1)
    most = max(1e-9, *(value for _, value in points))
    across, up = (_WIDTH - _PAD - 10) / (end - begin), (_HEIGHT - 40) / most
    bottom = _HEIGHT - 20
    places = [(_PAD + (at - begin) * across, bottom - value * up) for at, value in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [
        f'<polygon class="area" points="{_PAD},{bottom} {path} {places[-1][0]:.1f},{bottom}"/>',
        f'<polyline class="curve" points="{path}"/>',
        f'<line class="axis" x1="{_PAD}" y1="{bottom}" x2="{_WIDTH - 10}" y2="{bottom}"/>',
        f'<text x="{_PAD - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<text x="{_PAD - 6}" y="24" text-anchor="end">{number(most)} {escape(unit)}</text>',
        f'<text x="{_PAD}" y="{_HEIGHT - 4}">{clock(begin)}</text>',
        f'<text x="{_WIDTH - 10}" y="{_HEIGHT - 4}" text-anchor="end">{clock(end)}</text>',
    ]
    return _svg(_HEIGHT, label, parts)


def rates(points: Sequence[Sequence[float]], column: int) -> list[tuple[float, float]]:
    """Return how fast a total grew between points, a second; where it shrank, a restart began anew: nothing."""
    found = []
    for before, after in pairwise(points):
        seconds = after[0] - before[0]
        if seconds > 0:
            found.append((after[0], max(0.0, after[column] - before[column]) / seconds))
    return found


def clock(at: float) -> str:
    """Return a moment, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < _SECONDS_A_MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _SECONDS_AN_HOUR:
        return f"{seconds // _SECONDS_A_MINUTE:.0f} min {seconds % _SECONDS_A_MINUTE:.0f} s"
    return f"{seconds // _SECONDS_AN_HOUR:.0f} h {seconds % _SECONDS_AN_HOUR // _SECONDS_A_MINUTE:.0f} min"


def number(value: float) -> str:
    """Return a number as people write it."""
    return f"{value:,.0f}" if value >= _LARGE else f"{value:.3g}"


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
