"""How long the source keeps its changes: AWS's own client against an API that answers as AWS documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.adapters.retention import PARAMETER, RetentionReader, host_of
from d5agent.core.run.horizon import Basis, Retention
from d5agent.drill.child import free_port
from tests.fakes.docdb_api import FakeDocumentDbApi, FakeDocumentDbCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ORDERS = FakeDocumentDbCluster(name="orders", group="orders-parameters", instances=("orders-0", "orders-1"))
IAM_ACTIONS = ("rds:DescribeDBClusters", "rds:DescribeDBClusterParameters")


@pytest.fixture(autouse=True)
def role(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an instance's role gives."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")


@pytest.fixture
async def api() -> AsyncIterator[FakeDocumentDbApi]:
    """An account with two clusters; that of the tests keeps its changes for a day."""
    account = FakeDocumentDbApi(
        clusters=[FakeDocumentDbCluster(name="billing", group="default.docdb5.0"), ORDERS],
        groups={"default.docdb5.0": {PARAMETER: "10800"}, "orders-parameters": {PARAMETER: "86400"}},
    )
    async with account.served() as served:
        yield served


def reader(
    api: FakeDocumentDbApi, *, host: str = ORDERS.endpoint, configured: int | None = None, flavor: str = "documentdb"
) -> RetentionReader:
    return RetentionReader(host=host, is_documentdb=flavor == "documentdb", configured=configured, endpoint_url=api.url)


@pytest.mark.parametrize("host", [ORDERS.endpoint, ORDERS.host("cluster-ro-", "orders"), ORDERS.host("", "orders-1")])
async def test_the_parameter_of_the_hosts_cluster_is_read_over_all_pages(api: FakeDocumentDbApi, host: str) -> None:
    assert await reader(api, host=host).read() == Retention(seconds=86_400, basis=Basis.AWS)
    assert api.asked.count("DescribeDBClusterParameters") == 5


async def test_what_aws_says_wins_over_the_setting(api: FakeDocumentDbApi) -> None:
    assert await reader(api, configured=7_200).read() == Retention(seconds=86_400, basis=Basis.AWS)


async def test_a_parameter_that_is_changed_is_seen_by_the_next_reading(api: FakeDocumentDbApi) -> None:
    asking = reader(api)
    await asking.read()
    api.groups["orders-parameters"] = {PARAMETER: "604800"}
    assert (await asking.read()).seconds == 604_800


@pytest.mark.parametrize("action", ["DescribeDBClusters", "DescribeDBClusterParameters"])
async def test_without_the_right_the_setting_counts_and_the_hint_names_the_actions(
    api: FakeDocumentDbApi, action: str
) -> None:
    api.refusals[action] = "AccessDenied"
    found = await reader(api, configured=7_200).read()
    assert (found.seconds, found.basis) == (7_200, Basis.SETTING)
    assert found.reason == f"AWS refused {action}: AccessDenied"
    assert all(name in found.hint for name in IAM_ACTIONS)


async def test_without_right_and_setting_the_default_is_assumed_and_said_to_be(api: FakeDocumentDbApi) -> None:
    api.refusals["DescribeDBClusters"] = "AccessDenied"
    found = await reader(api).read()
    assert (found.seconds, found.basis) == (10_800, Basis.DEFAULT)
    assert found.reason


async def test_what_aws_told_once_counts_while_it_is_silent(api: FakeDocumentDbApi) -> None:
    asking = reader(api, configured=7_200)
    await asking.read()
    api.refusals["DescribeDBClusters"] = "Throttling"
    found = await asking.read()
    assert (found.seconds, found.basis) == (86_400, Basis.AWS)
    assert "Throttling" in found.reason
    assert api.asked.count("DescribeDBClusters") == 2  # no retries of botocore's own: it is asked again in minutes


async def test_a_cluster_of_that_name_in_another_account_is_not_ours(api: FakeDocumentDbApi) -> None:
    theirs = FakeDocumentDbCluster(name="orders", group="orders-parameters", account="zzzzzzzzzzzz")
    for host in (theirs.endpoint, theirs.host("", "orders-1")):
        found = await reader(api, host=host).read()
        assert (found.seconds, found.basis) == (10_800, Basis.DEFAULT)
        assert found.reason == "this AWS account has no cluster with the source's host"


async def test_a_cluster_that_is_not_there(api: FakeDocumentDbApi) -> None:
    found = await reader(api, host=FakeDocumentDbCluster(name="gone", group="x").endpoint).read()
    assert found.reason == "AWS refused DescribeDBClusters: DBClusterNotFoundFault"


@pytest.mark.parametrize("value", ["", "soon", "0", "-1"])
async def test_a_value_that_is_no_number_is_not_believed(api: FakeDocumentDbApi, value: str) -> None:
    api.groups["orders-parameters"] = {PARAMETER: value}
    found = await reader(api).read()
    assert (found.seconds, found.basis) == (10_800, Basis.DEFAULT)
    assert found.reason == f"{PARAMETER} has a value that is no number of seconds"


async def test_a_parameter_group_without_it(api: FakeDocumentDbApi) -> None:
    api.groups["orders-parameters"] = {}
    assert (await reader(api).read()).reason == f"the parameter group orders-parameters has no {PARAMETER}"


async def test_a_proxy_that_answers_with_a_page_of_its_own(api: FakeDocumentDbApi) -> None:
    api.garbage = "<html>please log in<br></html>"
    found = await reader(api).read()
    assert found.basis is Basis.DEFAULT
    assert found.reason == "AWS is not reached: ResponseParserError"


async def test_an_api_that_nobody_serves() -> None:
    nowhere = FakeDocumentDbApi(url=f"http://127.0.0.1:{free_port()}")
    found = await reader(nowhere, configured=7_200).read()
    assert (found.seconds, found.basis) == (7_200, Basis.SETTING)
    assert found.reason == "AWS is not reached: EndpointConnectionError"


async def test_no_credentials(api: FakeDocumentDbApi, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    found = await reader(api).read()
    assert found.reason == "AWS is not reached: NoCredentialsError"
    assert api.asked == []


async def test_a_host_that_is_no_cluster_is_not_asked_for(api: FakeDocumentDbApi) -> None:
    found = await reader(api, host="127.0.0.1").read()
    assert (found.seconds, found.basis) == (10_800, Basis.DEFAULT)
    assert found.reason == "the source's host is no endpoint of an Amazon DocumentDB cluster"
    assert "[source] retention_seconds" in found.hint
    assert await reader(api, host="127.0.0.1", configured=7_200).read() == Retention(seconds=7_200, basis=Basis.SETTING)
    assert api.asked == []


async def test_of_mongodb_only_the_setting_is_known(api: FakeDocumentDbApi) -> None:
    found = await reader(api, flavor="mongodb").read()
    assert (found.seconds, found.basis) == (None, None)
    assert "[source] retention_seconds" in found.hint
    known = await reader(api, flavor="mongodb", configured=600).read()
    assert known == Retention(seconds=600, basis=Basis.SETTING)
    assert api.asked == []


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        (f"mongodb://u:p%40@{ORDERS.endpoint.upper()}:27017/?replicaSet=rs0&tls=true&tlsCAFile=/no", ORDERS.endpoint),
        ("mongodb://a,b:1/", "a"),
        ("mongodb+srv://orders.example.com/", ""),
        ("mongodb://", ""),
        ("hush", ""),
    ],
)
def test_the_host_is_the_uris_first(uri: str, host: str) -> None:
    assert host_of(uri) == host
