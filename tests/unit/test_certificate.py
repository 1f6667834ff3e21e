"""Whether a certificate stands: asked by the command line, and by clean."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from d5agent.core.reports.certificate import sealed
from d5agent.errors import CorruptDataError, TransientError
from d5agent.steps.certificate import certificate_state
from d5agent.steps.log.reader import link_of
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
    assert await certificate_state(stage.store, proof, "run") == whole
    body = stage.store.objects[proof.certificate]
    stage.store.objects[proof.certificate] = body.replace(b"run", b"sun")
    altered = await certificate_state(stage.store, proof, "run")
    assert altered == {**whole, "valid": False, "reason": "the certificate was altered after it was issued"}
    del stage.store.objects[proof.certificate]
    gone = await certificate_state(stage.store, proof, "run")
    assert gone is not None
    assert gone["reason"] == "there is no certificate that both databases are equal"


@pytest.mark.parametrize("run_id", ["", "run"])
async def test_without_a_proof_and_a_certificate_there_is_nothing_to_say(run_id: str) -> None:
    assert await certificate_state(FakeObjectStore(), None, run_id) is None


async def test_a_store_that_does_not_answer_is_no_bad_certificate() -> None:
    stage = await certified()
    store = DownStore()
    store.error = TransientError("the store does not answer")
    with pytest.raises(TransientError):
        await certificate_state(store, stage.coordinator.state.verified, "run")


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


KEY = "reports/run/certificate.json"


def end_run(stage: Stage, *, digest: str | None = None) -> None:
    """Let the run be over: the log is gone, the final report there."""
    proof = stage.coordinator.state.verified
    assert proof is not None
    stage.store.objects = {k: v for k, v in stage.store.objects.items() if k.startswith("reports/")}
    report = {"version": 1, "verified": {"digest": digest or proof.digest}}
    stage.store.objects["reports/run/final.json"] = json.dumps(report).encode()


async def test_the_certificate_of_a_run_that_is_over_is_found_and_checked() -> None:
    stage = await certified()
    end_run(stage)
    found = await certificate_state(stage.store, None, "run")
    assert found is not None
    assert (found["key"], found["valid"]) == (KEY, True)
    assert "its run is over, and its log deleted" in str(found["reason"])
    stage.store.objects[KEY] = stage.store.objects[KEY].replace(b'"different": 0', b'"different": 1', 1)
    altered = await certificate_state(stage.store, None, "run")
    assert altered == {"key": KEY, "valid": False, "reason": "the certificate was altered after it was issued"}


async def test_the_certificate_of_a_run_that_is_over_must_be_the_one_that_was_proved() -> None:
    stage = await certified()
    end_run(stage, digest="of another log")
    found = await certificate_state(stage.store, None, "run")
    reason = "the certificate belongs to another log, or to another end of it"
    assert found == {"key": KEY, "valid": False, "reason": reason}


async def test_a_certificate_from_before_another_restore_is_named_as_that() -> None:
    stage = await certified()
    found = await certificate_state(stage.store, None, "run")
    assert found is not None
    assert found["valid"]
    assert "before restore was started again" in str(found["reason"])


async def test_a_certificate_that_a_run_has_left_must_say_that_all_is_equal() -> None:
    stage = await certified()
    certificate = json.loads(stage.store.objects[KEY])
    del certificate["sha256"]
    certificate["result"]["equal"] = False
    stage.store.objects[KEY] = sealed(certificate)
    found = await certificate_state(stage.store, None, "run")
    assert found is not None
    assert (found["valid"], found["reason"]) == (False, "the certificate does not say that both databases are equal")
