"""Whose the log is: the runs that its own commits name, which decide what may be deleted in a run's name."""

from __future__ import annotations

from dataclasses import dataclass

from d5agent.errors import RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOwners:
    """The runs that the commits in the store name. `unreadable`: how many commits name none, since they are damaged."""

    runs: frozenset[str] = frozenset()
    unreadable: int = 0


def check_owner(owners: LogOwners, run_id: str) -> None:
    """Raise RefusedError unless all that the store holds of a log belongs to this run, or there is no commit at all."""
    others = sorted(owners.runs - {run_id})
    if others:
        raise RefusedError(
            "clean refused: the bucket holds the log of another run",
            hint=f"nothing was deleted. {advice_on(others[0])}",
            run_id=run_id,
            found=", ".join(others),
        )
    if owners.unreadable and not owners.runs:
        raise RefusedError(
            "clean refused: no commit of the log can be read, so nothing says whose log it is",
            hint="nothing was deleted. Bring the commits below replication/.log/ back (bucket versioning), or delete"
            " replication/ in the bucket by hand; then type the command again",
            run_id=run_id,
            commits=owners.unreadable,
        )


def advice_on(run_id: str) -> str:
    """Return what to do about the log of a run that is not this agent's."""
    return (
        "To go on with that run, bring its state/phase.json back (bucket versioning). To keep its log, choose another"
        " [store] prefix. To delete its log for good, type: d5agent stop replication, then"
        f" d5agent start clean --force {run_id}"
    )
