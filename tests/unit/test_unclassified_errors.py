"""Which errors of the source and of S3 end capture: only those that have a name here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.exceptions import ClientError
from bson.errors import InvalidBSON
from pymongo.errors import ExecutionTimeout, InvalidURI, OperationFailure
from typing_extensions import override

from d5agent.adapters import s3
from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.stream_cursor import stream_error
from d5agent.core.run.horizon import Horizon, may_try_again
from d5agent.errors import NotKeptError, OperatorError, TransientError, UnclassifiedError
from tests.fakes.clock import FakeClock
from tests.fakes.source import FakeChangeSource
from tests.fakes.stage import Stage, until

if TYPE_CHECKING:
    from d5agent.core.log.operation import ClusterTime


def _failure(code: int, *labels: str) -> OperationFailure:
    return OperationFailure("x", code, {"errmsg": "the server's words", "errorLabels": list(labels)})


@pytest.mark.parametrize("code", [9, 13, 59, 136, 260, 280, 286, 303, 40324, 40415, 40573, 50811])
def test_named_codes_of_the_stream_are_final(code: int) -> None:
    assert isinstance(stream_error(_failure(code)), OperatorError)


@pytest.mark.parametrize("code", [136, 280, 286])
def test_a_lost_position_is_final_despite_a_label(code: int) -> None:
    assert isinstance(stream_error(_failure(code, "ResumableChangeStreamError")), NotKeptError)


@pytest.mark.parametrize("code", [6, 43, 63, 91, 133, 134, 150, 175, 202, 234, 246, 462, 10107, 13388])
def test_codes_that_pass_are_tried_again(code: int) -> None:
    error = stream_error(_failure(code))
    assert isinstance(error, TransientError)
    assert not isinstance(error, UnclassifiedError)
    assert error.facts == {"code": code, "server_says": "the server's words"}


def test_the_label_of_a_resumable_error_counts() -> None:
    error = stream_error(_failure(999, "ResumableChangeStreamError"))
    assert isinstance(error, TransientError)
    assert not isinstance(error, UnclassifiedError)


def test_a_server_side_timeout_is_tried_again() -> None:
    assert isinstance(stream_error(ExecutionTimeout("x", 50, {"errmsg": "time limit"})), TransientError)


@pytest.mark.parametrize("code", [1, 8, 251, 999, 14031])
def test_any_other_code_is_unclassified_with_the_servers_words(code: int) -> None:
    error = stream_error(_failure(code))
    assert isinstance(error, UnclassifiedError)
    assert error.facts == {"code": code, "server_says": "the server's words"}
    assert "a quarter of the retention" in error.hint


def test_a_damaged_reply_is_unclassified_and_a_wrong_uri_final() -> None:
    assert isinstance(stream_error(InvalidBSON("x")), UnclassifiedError)
    assert isinstance(stream_error(InvalidURI("x")), OperatorError)


def _s3_error(status: int, code: str) -> Exception:
    answer = {"Error": {"Code": code, "Message": "S3's words"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return s3.translated(ClientError(cast("Any", answer), "PutObject"), bucket="bucket", key="key")


@pytest.mark.parametrize(
    ("status", "code"),
    [(429, "Whatever"), (400, "ThrottlingException"), (400, "RequestTimeoutException"), (400, "SlowDown"), (500, "x")],
)
def test_throttling_by_s3_is_tried_again(status: int, code: str) -> None:
    error = _s3_error(status, code)
    assert isinstance(error, TransientError)
    assert not isinstance(error, UnclassifiedError)


@pytest.mark.parametrize("code", sorted(s3.FINAL))
def test_named_codes_of_s3_are_final(code: str) -> None:
    error = _s3_error(403, code)
    assert isinstance(error, OperatorError)
    assert error.hint


def test_any_other_code_of_s3_is_unclassified_with_its_words() -> None:
    error = _s3_error(400, "SomethingNew")
    assert isinstance(error, UnclassifiedError)
    assert error.facts["server_says"] == "S3's words"
    assert error.facts["code"] == "SomethingNew"


@pytest.mark.parametrize(("age", "may"), [(0, True), (74, True), (75, False), (101, False)])
def test_capture_tries_again_until_a_quarter_is_left(age: float, may: bool) -> None:  # noqa: FBT001 -- a table
    horizon = Horizon(lag_seconds=age, age_seconds=age, retention_seconds=100, catch_up_rate=None)
    assert may_try_again(horizon) is may


def test_an_unknown_horizon_ends_no_capture() -> None:
    assert may_try_again(None)
    assert may_try_again(Horizon(lag_seconds=9, age_seconds=9, retention_seconds=None, catch_up_rate=None))


async def test_a_look_that_fails_for_an_unknown_reason_is_reported() -> None:
    class Refusing(FakeChangeSource):
        """Can be read, but not looked at once replication is ready."""

        @override
        async def check_kept(self, since: ClusterTime | None) -> ClusterTime:
            if stage.coordinator.state.ready_at:
                raise UnclassifiedError("the source refused a command", hint="see", code=999)
            return await super().check_kept(since)

    stage = Stage()
    stage.source = Refusing(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: stage.coordinator.journal.facts_of("source_not_checked"))
    assert "code=999" in str(stage.coordinator.journal.facts_of("source_not_checked")[0]["error"])


class RefusingClient:
    """Answers each command with a code that nobody knows."""

    admin: RefusingClient

    def __init__(self) -> None:
        self.admin = self

    def __getitem__(self, _: str) -> RefusingClient:
        return self

    async def command(self, *_: object, **__: object) -> None:
        raise _failure(999)

    aggregate = insert_one = command


async def test_questions_beside_the_stream_meet_unknown_codes_alike() -> None:
    client = cast("Any", RefusingClient())
    source = ChangeStreamSource(client, uri="mongodb://127.0.0.1:1", flavor="documentdb", clock=FakeClock())
    for ask in (source.now, lambda: source.mark("mark"), source._is_enabled, source._hello):
        with pytest.raises(UnclassifiedError, match="999"):
            await ask()
