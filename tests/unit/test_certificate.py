"""Whether a certificate stands: asked by the command line, and by clean."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d5agent.errors import CorruptDataError, TransientError
from d5agent.steps.certificate import certificate_state
from d5agent.steps.log_reader import link_of
from tests.fakes.cluster import insert
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.store import DownStore, FakeObjectStore


async def certified() -> Stage:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.draw_fence()
    await stage.restore().run(stage.coordinator)
    return stage


async def test_a_certificate_is_whole_or_says_what_is_wrong_with_it() -> None:
    stage = await certified()
    proof = stage.coordinator.state.verified
    assert proof is not None
    whole = {"key": proof.certificate, "valid": True, "reason": ""}
    assert await certificate_state(stage.store, proof) == whole
    body = stage.store.objects[proof.certificate]
    stage.store.objects[proof.certificate] = body.replace(b"run", b"sun")
    altered = await certificate_state(stage.store, proof)
    assert altered == {**whole, "valid": False, "reason": "the certificate was altered after it was issued"}
    del stage.store.objects[proof.certificate]
    gone = await certificate_state(stage.store, proof)
    assert gone is not None
    assert gone["reason"] == "there is no certificate that both databases are equal"


async def test_without_a_proof_there_is_nothing_to_say() -> None:
    assert await certificate_state(FakeObjectStore(), None) is None


async def test_a_store_that_does_not_answer_is_no_bad_certificate() -> None:
    stage = await certified()
    store = DownStore()
    store.error = TransientError("the store does not answer")
    with pytest.raises(TransientError):
        await certificate_state(store, stage.coordinator.state.verified)


async def test_a_missing_commit_is_named() -> None:
    with pytest.raises(CorruptDataError, match="a commit is missing") as missing:
        await link_of(FakeObjectStore(), 7)
    assert missing.value.facts["key"] == "replication/.log/000000000007.json"


async def test_a_proof_is_taken_from_the_certificate_that_its_daemon_died_over() -> None:
    stage = await certified()
    proof, page = stage.coordinator.state.verified, stage.store.objects.pop("reports/run/certificate.html")
    killed = replace(stage.coordinator.state, verified=None)
    assert await stage.certifier().issued(killed) == proof
    assert stage.store.objects["reports/run/certificate.html"] == page
    assert await stage.certifier().issued(replace(killed, fence=None)) is None
    assert killed.fence is not None
    revoked = replace(killed, fence=replace(killed.fence, marker="a newer one"))
    assert await stage.certifier().issued(revoked) is None


async def test_an_altered_certificate_is_neither_a_proof_nor_passed_over() -> None:
    stage = await certified()
    killed = replace(stage.coordinator.state, verified=None)
    key = "reports/run/certificate.json"
    stage.store.objects[key] = stage.store.objects[key].replace(b'"compared": 1', b'"compared": 2')
    with pytest.raises(CorruptDataError, match="altered"):
        await stage.certifier().issued(killed)
    del stage.store.objects[key]
    assert await stage.certifier().issued(killed) is None
