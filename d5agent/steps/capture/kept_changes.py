"""Proves that the source has kept all its changes since the log began, and saves up to when that is proved.

A change stream that is switched off and on again passes over what happened in between, without an error. The log looks
whole then. Only a stream that is opened again before the gap shows it, so the last proved time is a state (ADR 38).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.naming import REPORTS
from d5agent.core.log.operation import ClusterTime
from d5agent.errors import AgentError, CorruptDataError, NotKeptError
from d5agent.steps.log.reader import LogReader, link_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.ports import ChangeHistory, Clock, ObjectStore, StateStore

KEPT: Final = "stream_kept"
GAP: Final = "stream_gap"
_HINT: Final = "d5agent never resumes from the current time on its own; see docs/runbook, 'the position is lost'"


def gap_key(run_id: str) -> str:
    """Return where the gap of a run is noted in the store, besides its state."""
    return f"{REPORTS}{run_id}/{GAP}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptChanges:
    """Looks for gaps in the stream of one run, and notes what it finds on disk and in the store."""

    source: ChangeHistory
    states: StateStore
    store: ObjectStore
    clock: Clock

    async def prove(self, run_id: str, *, sequence: int | None) -> ClusterTime | None:
        """Prove that nothing is missing in the stream from the last proved time until now, and save the new time.

        `sequence`: of the log's last commit; None: the log begins now. Return from when on no gap is proved; None: from
        the log's beginning. NotKeptError: there is a gap, now or since an earlier look. Any other error: nothing is
        known, and the next look begins at the same time again.
        """
        await self.refuse_gap(run_id)
        since, until = None, None
        try:
            if sequence is None:
                until = await self.source.check_kept(None)
            elif (kept := await self._kept(run_id)) is not None:
                since = None if kept.get("since") is None else ClusterTime(*kept["since"])
                until = await self.source.check_kept(ClusterTime(*kept["cluster_time"]))
            else:
                since, until = await self._from_the_log(sequence)
        except NotKeptError as error:
            if sequence is not None:  # else nothing was captured yet, and nothing is lost
                await self._note_gap(run_id, sequence, error)
            raise
        await self.states.save(KEPT, {"version": 1, "run_id": run_id, "cluster_time": until, "since": since})
        return since

    async def _from_the_log(self, sequence: int) -> tuple[ClusterTime | None, ClusterTime]:
        """Prove a log that an earlier version began, which saved no proved time; return from when on, and until when.

        From the log's first commit: where the source still has all of that, and no gap, the log is whole. Else nobody
        can tell a gap from changes that have grown too old, and what is behind the last commit is what can be proved.
        """
        first = await anext(LogReader(store=self.store).links())
        try:
            return None, await self.source.check_kept(first.commit.position.cluster_time)
        except NotKeptError:
            since = (await link_of(self.store, sequence)).commit.position.cluster_time
            return since, await self.source.check_kept(since)

    async def refuse_gap(self, run_id: str) -> None:
        """Raise NotKeptError if a gap was found in this run: the log may hold operations on both sides of it."""
        gap = await self.states.load(GAP)
        if gap is None or gap["run_id"] != run_id:
            body = await self.store.get(gap_key(run_id))
            if body is None:
                return
            gap = _decoded(body, gap_key(run_id))
        raise NotKeptError(
            "the stream has a gap: operations are lost to it, and the log cannot be carried on",
            hint=_HINT,
            found_at=gap["found_at"],
            sequence=gap["sequence"],
            found=gap["error"],
        )

    async def _kept(self, run_id: str) -> dict[str, Any] | None:
        """Return what is proved; None: an earlier version has begun the log, and saved no such time."""
        kept = await self.states.load(KEPT)
        return kept if kept is not None and kept["run_id"] == run_id else None

    async def _note_gap(self, run_id: str, sequence: int, error: NotKeptError) -> None:
        """Save what was found on disk and in the store: either may refuse it. If both do, the next look finds it."""
        gap: dict[str, Any] = {
            "version": 1,
            "run_id": run_id,
            "found_at": self.clock.now().isoformat(timespec="seconds"),
            "sequence": sequence,
            "error": error.message,
        }
        for save in (self._save_in_store, self._save_on_disk):
            try:
                await save(run_id, gap)
            except AgentError as refused:
                error.facts["not_saved"] = str(refused)

    async def _save_in_store(self, run_id: str, gap: Mapping[str, Any]) -> None:
        await self.store.put(gap_key(run_id), json.dumps(gap, indent=1).encode() + b"\n")

    async def _save_on_disk(self, _: str, gap: Mapping[str, Any]) -> None:
        await self.states.save(GAP, gap)


def _decoded(body: bytes, key: str) -> dict[str, Any]:
    """Return a gap as it was noted in the store. CorruptDataError: it is something else, and a gap all the same."""
    try:
        gap = json.loads(body)
        _ = gap["found_at"], gap["sequence"], gap["error"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(
            "a gap of the stream was noted, and the note is damaged",
            hint=f"bring the object back (bucket versioning) to see what was found; {_HINT}",
            key=key,
        ) from error
    return dict(gap)
