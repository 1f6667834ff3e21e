"""Issues the certificate: for machines as JSON, for people as a page, both under `reports/`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from d5agent.core.certificate import (
    certificate_key,
    certificate_of,
    check_certificate,
    end_of_stream,
    proof_of,
    proved_fence,
    sealed,
)
from d5agent.core.outside import OFF
from d5agent.core.page import page_of
from d5agent.errors import AgentError, TransientError
from d5agent.steps.late import operations_behind
from d5agent.steps.log_reader import LogReader, link_of

if TYPE_CHECKING:
    from d5agent.core.certificate import Evidence
    from d5agent.core.report import VerifyReport
    from d5agent.core.services import PhaseState, Verified
    from d5agent.core.timeline import Timeline
    from d5agent.ports import ObjectStore
    from d5agent.steps.kept_changes import KeptChanges


@dataclass(frozen=True, slots=True, kw_only=True)
class Certifier:
    """Issues for one agent. `issuer`: who it is, in the certificate's words."""

    store: ObjectStore
    kept: KeptChanges
    timeline: Timeline
    issuer: dict[str, str]

    async def certify(self, state: PhaseState, proof: Verified, report: VerifyReport, evidence: Evidence) -> Verified:
        """Store the certificate of a proof; return the proof with its key and the hash of the log's last commit.

        OperatorError: no marker proves that the log holds all of the stream, or the stream has a gap.
        """
        fence = proved_fence(state)
        await self.kept.prove(state.run_id, sequence=proof.sequence)
        link = await link_of(self.store, proof.sequence)
        certificate = certificate_of(
            report,
            link,
            self.timeline,
            evidence=evidence,
            issuer=self.issuer,
            read_only_since=fence.read_only_at or state.since,
        )
        certificate["issued_at"] = proof.at
        behind = await operations_behind(LogReader(store=self.store), fence, until=proof.sequence)
        certificate["end_of_stream"] = end_of_stream(fence, operations_after=behind)
        certificate["target_hold"] = evidence.target_hold
        certificate["outside"] = dict(evidence.outside or OFF)
        key = certificate_key(report.run_id)
        await self.store.put(key, sealed(certificate))
        # The page last: whoever reads it may move applications, and the next start must know of the proof.
        await self._put_page(report.run_id, certificate)
        return replace(proof, certificate=key, digest=link.digest)

    async def issued(self, state: PhaseState) -> Verified | None:
        """Return the proof of a certificate that a daemon issued, and was killed before its state said so.

        None: there is none behind this fence. CorruptDataError, OperatorError: it was altered, or is another log's.
        """
        key = certificate_key(state.run_id)
        body = await self.store.get(key) if state.fence is not None else None
        found = None if body is None or state.fence is None else proof_of(body, state.fence, key=key)
        if found is None:
            return None
        proof, certificate = found
        check_certificate(body, await link_of(self.store, proof.sequence))
        await self._put_page(state.run_id, certificate)
        return proof

    async def _put_page(self, run_id: str, certificate: dict[str, Any]) -> None:
        page = page_of(certificate).encode(errors="backslashreplace")
        await self.store.put(certificate_key(run_id, "html"), page)


async def certificate_state(store: ObjectStore, proof: Verified | None) -> dict[str, object] | None:
    """Return whether the certificate of a proof is there, whole, and this log's; None: nothing was certified."""
    if proof is None or not proof.certificate:
        return None
    try:
        check_certificate(await store.get(proof.certificate), await link_of(store, proof.sequence))
    except TransientError:
        raise
    except AgentError as error:
        return {"key": proof.certificate, "valid": False, "reason": error.message}
    return {"key": proof.certificate, "valid": True, "reason": ""}
