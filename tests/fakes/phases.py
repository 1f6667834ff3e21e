"""Phase states for tests of who may do what when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from d5agent.core.run.services import ServiceState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.run.services import PhaseState, Service, Status

BEFORE: Final = "before"  # since when each row is as it is


def with_rows(state: PhaseState, rows: Mapping[Service, Status]) -> PhaseState:
    """Return the state with these services' rows as they are here."""
    for service, status in rows.items():
        state = state.with_service(service, ServiceState(status=status, since=BEFORE))
    return state
