"""How long the source keeps its log of changes: asked of AWS, else what the configuration says, else the default.

Over the wire DocumentDB does not tell it. It is a parameter of the cluster's parameter group, and can be changed at any
time without a restart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from d5agent.core.run.horizon import DEFAULT_RETENTION_SECONDS, Basis, Retention

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PARAMETER: Final = "change_stream_log_retention_duration"
_SET_IT: Final = "set [source] retention_seconds to what the source keeps"
_GRANT_IT: Final = (
    "give the instance's role rds:DescribeDBClusters and rds:DescribeDBClusterParameters, and this machine a way to "
    "the RDS API (VPC endpoint); or set [source] retention_seconds"
)
# CLUSTER.cluster-…, CLUSTER.cluster-ro-… or INSTANCE.…, as the developer guide's "Understanding endpoints" has them.
_HOST: Final = re.compile(
    r"(?P<name>[a-z0-9-]+)\.(?P<cluster>cluster-(?:ro-)?)?(?P<account>[a-z0-9]+)"
    r"\.(?P<region>[a-z0-9-]+)\.docdb\.amazonaws\.com(?:\.cn)?"
)


class _NotReadError(Exception):
    """Why AWS did not tell it; the text is for the journal."""


def host_of(uri: str) -> str:
    """Return the URI's first host, in small letters; empty when it has none."""
    try:
        # Not validated: files and options that it names are the driver's affair. A name in the DNS is not looked up.
        hosts = [] if uri.startswith("mongodb+srv:") else parse_uri(uri, validate=False)["nodelist"]
    except (PyMongoError, ValueError):
        return ""
    return str(hosts[0][0]) if hosts else ""


@dataclass(slots=True, kw_only=True)
class RetentionReader:
    """Reads the retention of one source, as often as it is asked. It never fails: it says what it could not read.

    `configured` is what counts where AWS does not tell. What AWS told once counts until it tells something else.
    """

    host: str
    is_documentdb: bool
    configured: int | None
    endpoint_url: str | None = None  # tests only
    _session: AioSession = field(default_factory=get_session)  # kept: each one holds megabytes of service models
    _told: int | None = None

    async def read(self) -> Retention:
        """Return how long the source keeps its changes, as far as it is known."""
        if not self.is_documentdb:
            hint = "" if self.configured else _SET_IT
            return self._without_aws("" if self.configured else "MongoDB keeps what its oplog has room for", hint)
        found = _HOST.fullmatch(self.host)
        if found is None:
            reason = "" if self.configured else "the source's host is no endpoint of an Amazon DocumentDB cluster"
            return self._without_aws(reason, "" if self.configured else _SET_IT)
        try:
            self._told = await self._ask(found)
        except _NotReadError as error:
            return self._without_aws(str(error), _GRANT_IT)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "?")
            return self._without_aws(f"AWS refused {error.operation_name}: {code}", _GRANT_IT)
        except (BotoCoreError, ResponseParserError, OSError, ValueError) as error:
            # No credentials, no way to AWS, an answer that is none: capture goes on without.
            return self._without_aws(f"AWS is not reached: {type(error).__name__}", _GRANT_IT)
        return Retention(seconds=self._told, basis=Basis.AWS)

    def _without_aws(self, reason: str, hint: str) -> Retention:
        if self._told is not None:
            return Retention(seconds=self._told, basis=Basis.AWS, reason=reason, hint=hint)
        if self.configured is not None:
            return Retention(seconds=self.configured, basis=Basis.SETTING, reason=reason, hint=hint)
        if self.is_documentdb:
            return Retention(seconds=DEFAULT_RETENTION_SECONDS, basis=Basis.DEFAULT, reason=reason, hint=hint)
        return Retention(reason=reason, hint=hint)

    async def _ask(self, found: re.Match[str]) -> int:
        config = AioConfig(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1})
        async with self._session.create_client(
            "docdb", endpoint_url=self.endpoint_url, region_name=found["region"], config=config
        ) as client:
            group = await self._parameter_group(client, found)
            pages = await _pages(client.describe_db_cluster_parameters, DBClusterParameterGroupName=group)
        for page in pages:
            for parameter in page.get("Parameters", []):
                if parameter.get("ParameterName") == PARAMETER:
                    return _seconds(parameter.get("ParameterValue", ""))
        raise _NotReadError(f"the parameter group {group} has no {PARAMETER}")

    async def _parameter_group(self, client: Any, found: re.Match[str]) -> str:  # noqa: ANN401 -- no types for docdb
        """Return the parameter group of the cluster that the host belongs to.

        The whole host is compared: another account may have a cluster of the same name, with another retention.
        """
        named = {"DBClusterIdentifier": found["name"]} if found["cluster"] else {}
        for page in await _pages(client.describe_db_clusters, **named):
            for cluster in page.get("DBClusters", []):
                if self.host in _hosts_of(cluster, account=found["account"], region=found["region"]):
                    return str(cluster.get("DBClusterParameterGroup", "?"))
        raise _NotReadError("this AWS account has no cluster with the source's host")


async def _pages(call: Callable[..., Awaitable[dict[str, Any]]], **arguments: str) -> list[dict[str, Any]]:
    pages = [await call(**arguments)]
    while marker := pages[-1].get("Marker"):
        pages.append(await call(**arguments, Marker=marker))
    return pages


def _hosts_of(cluster: dict[str, Any], *, account: str, region: str) -> set[str]:
    """Return a cluster's endpoints: its own, and its instances', which differ from it in the first label."""
    endpoint = str(cluster.get("Endpoint", "")).lower()
    hosts = {endpoint, str(cluster.get("ReaderEndpoint", "")).lower()}
    domain = endpoint.partition(f".cluster-{account}.{region}.")[2]  # none: another account's
    members = cluster.get("DBClusterMembers", [])
    return hosts | {f"{m.get('DBInstanceIdentifier', '')}.{account}.{region}.{domain}".lower() for m in members}


def _seconds(value: str) -> int:
    if not value.isdecimal() or not int(value):
        raise _NotReadError(f"{PARAMETER} has a value that is no number of seconds")
    return int(value)
