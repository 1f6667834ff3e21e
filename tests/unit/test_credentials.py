"""Credentials that are missing, expired or refused are waited for: which errors that are, and who tries again."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    MetadataRetrievalError,
    NoCredentialsError,
    ProfileNotFound,
)
from pymongo.errors import OperationFailure

from d5agent.adapters.aws_credentials import REFUSED, credentials_error
from d5agent.adapters.mongo import translated
from d5agent.adapters.renewable_client import RenewableClient
from d5agent.adapters.s3 import S3Store
from d5agent.adapters.s3_connection import S3Connection
from d5agent.adapters.stream_cursor import stream_error
from d5agent.errors import CredentialsError, OperatorError, TransientError
from d5agent.runtime.absent_credentials import with_credentials
from d5agent.runtime.notify import Notifier
from tests.fakes.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from types_aiobotocore_s3.client import S3Client

    from d5agent.adapters.mongo import Client


def refusal(code: str) -> ClientError:
    return ClientError(cast("Any", {"Error": {"Code": code}}), "PutObject")


class KeyedClient:
    """An S3 client with one key, which counts for so many requests."""

    def __init__(self, *, requests: int, code: str = "ExpiredToken") -> None:
        self.left = requests
        self.code = code
        self.is_open = True

    async def put_object(self, **_: object) -> dict[str, Any]:
        assert self.is_open
        if not self.left:
            raise refusal(self.code)
        self.left -= 1
        return {}


class Sessions:
    """Opens clients one after the other."""

    def __init__(self, *clients: KeyedClient | Exception) -> None:
        self.clients = list(clients)
        self.opened: list[KeyedClient] = []

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[S3Client]:
        client = self.clients.pop(0)
        if isinstance(client, Exception):
            raise client
        self.opened.append(client)
        try:
            yield cast("S3Client", client)
        finally:
            client.is_open = False


def store_of(first: KeyedClient, sessions: Sessions) -> tuple[S3Store, S3Connection]:
    connection = S3Connection(cast("S3Client", first), sessions.open)
    return S3Store(connection, bucket="bucket", prefix="", clock=FakeClock()), connection


@pytest.mark.parametrize("code", sorted(REFUSED))
async def test_a_refused_key_is_replaced_by_a_renewed_one(code: str) -> None:
    sessions = Sessions(KeyedClient(requests=2))
    store, _ = store_of(KeyedClient(requests=1, code=code), sessions)
    for key in ("a", "b", "c"):
        assert await store.put_once(key, b"")
    assert [client.left for client in sessions.opened] == [0]


async def test_credentials_that_stay_refused_are_named() -> None:
    sessions = Sessions(*[KeyedClient(requests=0) for _ in range(10)])
    store, connection = store_of(KeyedClient(requests=0), sessions)
    with pytest.raises(CredentialsError, match="AWS refused the credentials") as refused:
        await store.put_once("a", b"")
    assert refused.value.facts["code"] == "ExpiredToken"
    assert "read again" in refused.value.hint
    assert [client.is_open for client in sessions.opened[-3:]] == [False, True, True]
    await connection.close()
    assert not any(client.is_open for client in sessions.opened)


async def test_a_half_written_file_of_credentials_is_read_again() -> None:
    sessions = Sessions(ProfileNotFound(profile="agent"), KeyedClient(requests=1))
    store, _ = store_of(KeyedClient(requests=0), sessions)
    assert await store.put_once("a", b"")


async def test_two_refused_requests_make_one_new_client() -> None:
    sessions = Sessions(KeyedClient(requests=1))
    first = KeyedClient(requests=0)
    _, connection = store_of(first, sessions)
    for _ in range(2):
        await connection.renew(cast("S3Client", first))
    assert len(sessions.opened) == 1


async def test_a_client_of_somebody_else_is_not_replaced() -> None:
    client = cast("S3Client", KeyedClient(requests=0))
    connection = S3Connection(client)
    await connection.renew(client)
    assert connection.client is client


@pytest.mark.parametrize(
    "error",
    [
        NoCredentialsError(),
        CredentialRetrievalError(provider="x", error_msg="x"),
        MetadataRetrievalError(error_msg="x"),
    ],
)
def test_missing_credentials_are_waited_for(error: Exception) -> None:
    found = credentials_error(error, bucket="bucket")
    assert found is not None
    assert found.message == "no AWS credentials"
    assert found.facts["bucket"] == "bucket"


def test_other_errors_are_not_about_credentials() -> None:
    for error in (refusal("AccessDenied"), EndpointConnectionError(endpoint_url="x"), ValueError()):
        assert credentials_error(error) is None


async def test_a_start_waits_for_credentials_longer_and_longer() -> None:
    clock, times = FakeClock(), list[float]()

    async def acquire() -> str:
        times.append(clock.monotonic())
        if len(times) < 8:
            raise CredentialsError("no AWS credentials", hint="give some")
        return "done"

    assert await with_credentials(acquire, clock=clock, notifier=Notifier(None)) == "done"
    assert [after - before for before, after in itertools.pairwise(times)] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("error", [OperatorError("no"), TransientError("not now")])
async def test_a_start_waits_for_nothing_else(error: Exception) -> None:
    async def acquire() -> None:
        raise error

    with pytest.raises(type(error)):
        await with_credentials(acquire, clock=FakeClock(), notifier=Notifier(None))


URI = "mongodb://agent:{}@one:27017,two:27017/?replicaSet=rs0"


class FakeClient:
    """A client that says whose it is."""

    def __init__(self, uri: str) -> None:
        self.admin = uri
        self.is_open = True

    def __getitem__(self, name: str) -> str:
        return f"{name} of {self.admin}"


class Secret:
    """What the URI is at this moment, and the clients that were opened with it."""

    def __init__(self) -> None:
        self.uri = URI.format("first")
        self.opened: list[FakeClient] = []

    async def read(self) -> str:
        return self.uri

    @asynccontextmanager
    async def open(self, uri: str) -> AsyncGenerator[Client]:
        client = FakeClient(uri)
        self.opened.append(client)
        yield cast("Client", client)
        client.is_open = False

    def renewable(self) -> RenewableClient:
        first = cast("Client", FakeClient(self.uri))
        return RenewableClient(first, self.uri, side="source", read=self.read, open_client=self.open)


async def test_a_renewed_password_is_used_by_whoever_holds_the_client() -> None:
    secret = Secret()
    renewable = secret.renewable()
    client: Any = renewable.as_client()
    assert not await renewable.renew()
    secret.uri = URI.format("second")
    assert await renewable.renew()
    assert renewable.uri == client.admin == secret.uri
    assert client["shop"] == f"shop of {secret.uri}"
    secret.uri = URI.format("third")
    assert await renewable.renew()
    assert [opened.is_open for opened in secret.opened] == [True, True]  # somebody may read from the one before
    await renewable.close()
    assert not any(opened.is_open for opened in secret.opened)


async def test_the_uri_of_another_cluster_is_not_taken_up() -> None:
    secret = Secret()
    renewable = secret.renewable()
    secret.uri = URI.format("second").replace("two", "three")
    assert not await renewable.renew()
    assert renewable.uri == URI.format("first")


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_refused_user_is_waited_for(side: str) -> None:
    error = translated(OperationFailure("x", 18, {"errmsg": "Authentication failed."}), side)
    assert isinstance(error, CredentialsError)
    assert "it is read again by itself" in error.hint
    assert isinstance(stream_error(OperationFailure("x", 18)), CredentialsError)
