"""Where a URI comes from: what a secret says at that moment, and what is said where it says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.adapters.secrets import UriOrigin, uri_from_secret
from d5agent.errors import NotGivenError, OperatorError, TransientError
from tests.fakes.secrets_api import FakeSecretsApi

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[FakeSecretsApi]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    async with FakeSecretsApi().served() as api:
        yield api


async def uri_of(api: FakeSecretsApi) -> str:
    origin = UriOrigin(side="target", uri=None, secret_id="mongo", credentials=None)
    return await origin.uri_of(endpoint_url=api.url, region="eu-west-1")


async def test_secret_is_read_at_each_question(api: FakeSecretsApi) -> None:
    api.secrets["mongo"] = {"SecretString": '{"uri": "mongodb://one/"}'}
    assert await uri_of(api) == "mongodb://one/"
    api.secrets["mongo"] = {"SecretString": '{"uri": "mongodb://two/"}'}
    assert await uri_of(api) == "mongodb://two/"


async def test_secret_without_value_is_not_given_yet(api: FakeSecretsApi) -> None:
    api.secrets["mongo"] = None
    with pytest.raises(NotGivenError, match="the target's secret cannot be read") as raised:
        await uri_of(api)
    assert "aws secretsmanager put-secret-value --secret-id mongo" in raised.value.hint


async def test_secret_that_may_not_be_read_names_the_right(api: FakeSecretsApi) -> None:
    api.refusal = "AccessDeniedException"
    with pytest.raises(OperatorError, match="AccessDeniedException") as raised:
        await uri_of(api)
    assert not isinstance(raised.value, NotGivenError)
    assert "secretsmanager:GetSecretValue on mongo" in raised.value.hint


@pytest.mark.parametrize(
    "value",
    [
        {"SecretBinary": "aHVzaA=="},
        {"SecretString": "hush"},
        {"SecretString": '"uri hush"'},
        {"SecretString": '{"username": "hush"}'},
    ],
    ids=["binary", "no JSON", "no object", "half"],
)
async def test_secret_of_another_shape_is_refused_unseen(api: FakeSecretsApi, value: dict[str, str]) -> None:
    api.secrets["mongo"] = value
    with pytest.raises(OperatorError, match="the secret of the target is not what it should be") as raised:
        await uri_of(api)
    assert "hush" not in f"{raised.value} {raised.value.hint}"


async def test_unreachable_secrets_manager_may_pass(api: FakeSecretsApi) -> None:
    api.url = "http://127.0.0.1:1"
    with pytest.raises(TransientError, match="Secrets Manager is not reached"):
        await uri_of(api)


async def test_credential_is_read_where_nothing_else_is_given(tmp_path: Path) -> None:
    origin = UriOrigin(side="target", uri=None, secret_id=None, credentials=tmp_path)
    with pytest.raises(NotGivenError, match="no URI for the target"):
        await origin.uri_of(endpoint_url=None, region=None)
    (tmp_path / "target.uri").write_text("mongodb://one/\n", encoding="utf-8")
    assert await origin.uri_of(endpoint_url=None, region=None) == "mongodb://one/"


def test_user_and_password_are_percent_encoded() -> None:
    body = '{"username": "a/b", "password": "p?@:/%", "host": "h", "port": 27017}'
    assert uri_from_secret(body, "target").startswith("mongodb://a%2Fb:p%3F%40%3A%2F%25@h:27017/?")
