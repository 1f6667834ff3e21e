"""What Amazon DocumentDB's API answers to the two questions that are asked of it, over real HTTP, as documented.

The client, its signature and its parser are botocore's own.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

_XMLNS: Final = "http://rds.amazonaws.com/doc/2014-10-31/"
_OTHERS: Final = {"audit_logs": "disabled", "profiler": "disabled", "tls": "enabled", "ttl_monitor": "enabled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeDocumentDbCluster:
    """One cluster of the account."""

    name: str
    group: str
    account: str = "c1abcdefghij"
    region: str = "eu-west-1"
    instances: Sequence[str] = ()

    @property
    def endpoint(self) -> str:
        return self.host("cluster-", self.name)

    def host(self, kind: str, name: str) -> str:
        """Return an endpoint's host name."""
        return f"{name}.{kind}{self.account}.{self.region}.docdb.amazonaws.com"

    def xml(self) -> str:
        members = "".join(
            f"<DBClusterMember><DBInstanceIdentifier>{name}</DBInstanceIdentifier></DBClusterMember>"
            for name in self.instances
        )
        return (
            f"<DBCluster><DBClusterIdentifier>{self.name}</DBClusterIdentifier><Endpoint>{self.endpoint}</Endpoint>"
            f"<ReaderEndpoint>{self.host('cluster-ro-', self.name)}</ReaderEndpoint>"
            f"<DBClusterParameterGroup>{self.group}</DBClusterParameterGroup>"
            f"<DBClusterMembers>{members}</DBClusterMembers></DBCluster>"
        )


@dataclass(slots=True, kw_only=True)
class FakeDocumentDbApi:
    """The account: clusters, and the parameters of each parameter group. One row a page, to see that all are read.

    `refusals`: by action, the error code that it is answered with. `garbage`: what is answered instead of XML.
    """

    clusters: list[FakeDocumentDbCluster] = field(default_factory=list)
    groups: dict[str, Mapping[str, str]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    garbage: str = ""
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @asynccontextmanager
    async def served(self) -> AsyncGenerator[FakeDocumentDbApi]:
        """Answer while the block runs."""
        application = web.Application()
        application.router.add_post("/", self._answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        asked = {name: str(value) for name, value in (await request.post()).items()}
        action = asked["Action"]
        self.asked.append(action)
        if self.garbage:
            return web.Response(text=self.garbage, content_type="text/html")
        if action in self.refusals:
            code = self.refusals[action]
            return _error(code, status=403 if code == "AccessDenied" else 400)
        if action == "DescribeDBClusters":
            name = asked.get("DBClusterIdentifier")
            rows = [cluster.xml() for cluster in self.clusters if name in {None, cluster.name}]
            return _page(action, "DBClusters", rows, asked) if rows or not name else _error("DBClusterNotFoundFault")
        group = self.groups.get(asked["DBClusterParameterGroupName"])
        if group is None:
            return _error("DBParameterGroupNotFound")
        return _page(action, "Parameters", [_parameter(*row) for row in {**_OTHERS, **group}.items()], asked)


def _parameter(name: str, value: str) -> str:
    shown = f"<ParameterValue>{escape(value)}</ParameterValue>" if value else ""
    return f"<Parameter><ParameterName>{name}</ParameterName>{shown}<ApplyType>dynamic</ApplyType></Parameter>"


def _page(action: str, rows_are: str, rows: Sequence[str], asked: Mapping[str, str]) -> web.Response:
    at = int(asked.get("Marker", "0"))
    marker = f"<Marker>{at + 1}</Marker>" if at + 1 < len(rows) else ""
    return _xml(
        f'<{action}Response xmlns="{_XMLNS}"><{action}Result><{rows_are}>{"".join(rows[at : at + 1])}</{rows_are}>'
        f"{marker}</{action}Result><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></{action}Response>",
        status=200,
    )


def _error(code: str, *, status: int = 404) -> web.Response:
    return _xml(
        f'<ErrorResponse xmlns="{_XMLNS}"><Error><Type>Sender</Type><Code>{code}</Code>'
        f"<Message>no</Message></Error><RequestId>1</RequestId></ErrorResponse>",
        status=status,
    )


def _xml(body: str, *, status: int) -> web.Response:
    return web.Response(text=body, status=status, content_type="text/xml")
