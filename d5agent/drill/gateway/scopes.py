"""What modifyChangeStreams has enabled, and since when: which events the stream may show.

Times are clusterTimes as 64-bit numbers. A scope keeps the spans in which it was on, because enabling
covers later events only, and because switching off and on again ends the history.
"""

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypedDict

CLUSTER_ID_BYTES: Final = 6


class Scope(NamedTuple):
    """A collection, a database ("" as the collection) or the cluster ("" twice)."""

    database: str
    collection: str


WHOLE_CLUSTER: Final = Scope("", "")


class Span(NamedTuple):
    """On after `since`, up to and including `until`; still on when there is no until."""

    since: int
    until: int | None

    def holds(self, time: int) -> bool:
        return self.since < time and (self.until is None or time <= self.until)


class _Saved(TypedDict):
    cluster_id: str
    horizon: int
    scopes: list[tuple[str, str, list[tuple[int, int | None]]]]


def covering(scope: Scope) -> tuple[Scope, ...]:
    """Name the scopes that switch all of this one on: itself, its database, the cluster."""
    return tuple({scope, Scope(scope.database, ""), WHOLE_CLUSTER})


@dataclass(slots=True, kw_only=True)
class StreamLog:
    """The gateway's own memory of a cluster: its id, its scopes, and what the log has lost."""

    path: Path | None = None
    cluster_id: bytes = field(default_factory=lambda: secrets.token_bytes(CLUSTER_ID_BYTES))
    horizon: int = 0
    spans: dict[Scope, list[Span]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None) -> "StreamLog":
        """Remember what the file holds; begin a new cluster when there is no file yet."""
        if path is None or not path.exists():
            log = cls(path=path)
            log.save()
            return log
        saved: _Saved = json.loads(path.read_text())
        return cls(
            path=path,
            cluster_id=bytes.fromhex(saved["cluster_id"]),
            horizon=saved["horizon"],
            spans={
                Scope(database, collection): [Span(*span) for span in spans]
                for database, collection, spans in saved["scopes"]
            },
        )

    def save(self) -> None:
        if self.path is None:
            return
        saved: _Saved = {
            "cluster_id": self.cluster_id.hex(),
            "horizon": self.horizon,
            "scopes": [(*scope, [(s.since, s.until) for s in spans]) for scope, spans in self.spans.items()],
        }
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(saved))
        beside.replace(self.path)

    def modify(self, scope: Scope, *, enable: bool, at: int) -> None:
        """Switch a scope on or off from this clusterTime on; doing it twice changes nothing."""
        if enable == self._is_on(scope):
            return
        spans = self.spans.setdefault(scope, [])
        if enable:
            spans.append(Span(at, None))
        else:
            spans[-1] = spans[-1]._replace(until=at)
        self.save()

    def expire(self, before: int) -> None:
        """Forget every position before this clusterTime."""
        self.horizon = max(self.horizon, before)
        self.save()

    def enabled(self) -> list[dict[str, Any]]:
        """List the rows of $listChangeStreams."""
        return [scope._asdict() for scope in self.spans if self._is_on(scope)]

    def is_silent(self, scope: Scope) -> bool:
        """Whether nothing inside this scope is on, so that a stream over it shows nothing."""
        return not any(self._is_on(each) and _overlaps(scope, each) for each in self.spans)

    def whole_cluster_since(self) -> int | None:
        """Since when every event is shown: the short cut around `shows`."""
        spans = self.spans.get(WHOLE_CLUSTER)
        if spans and spans[-1].until is None:
            return spans[-1].since
        return None

    def shows(self, namespace: Scope, time: int) -> bool:
        """Whether an event of this namespace at this time was written to the log."""
        return any(span.holds(time) for scope in covering(namespace) for span in self.spans.get(scope, ()))

    def has_lost(self, scope: Scope, time: int) -> bool:
        """Whether a stream over this scope can no longer start at this time."""
        if time < self.horizon:
            return True
        return any(
            time < back and not self._is_on_across(scope, off, back)
            for each in covering(scope)
            for off, back in _gaps(self.spans.get(each, []))
        )

    def _is_on_across(self, scope: Scope, off: int, back: int) -> bool:
        return any(
            span.since < off and (span.until is None or span.until > back)
            for each in covering(scope)
            for span in self.spans.get(each, ())
        )

    def _is_on(self, scope: Scope) -> bool:
        spans = self.spans.get(scope)
        return bool(spans) and spans is not None and spans[-1].until is None


def _overlaps(one: Scope, other: Scope) -> bool:
    return all(a in {b, ""} or b == "" for a, b in zip(one, other, strict=True))


def _gaps(spans: list[Span]) -> list[tuple[int, int]]:
    """When a scope went off, and when it came back (the same moment while it has not)."""
    following: list[Span | None] = [*spans[1:], None]
    return [
        (span.until, span.until if later is None else later.since)
        for span, later in zip(spans, following, strict=False)
        if span.until is not None
    ]
