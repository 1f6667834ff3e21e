"""Bad input: each has its own message, a hint and an exit code, and nothing is written."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from bson import encode

from d5agent.drill.child import Child, free_port
from d5agent.drill.gateway import Gateway
from d5agent.drill.s3_proxy import refuse
from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from tests.integration.agent_rig import PATIENCE_SECONDS, Client, said

if TYPE_CHECKING:
    from pathlib import Path

    from d5agent.drill.agent import Agent, Ended
    from d5agent.drill.s3_proxy import S3Proxy
    from tests.integration.agent_rig import AgentRig

OPERATOR = 78
TRANSIENT = 75
USAGE = 2


async def refused(rig: AgentRig, verb: str, *words: str, code: int = OPERATOR) -> Ended:
    """Run a verb that must fail with these words, a next step, no traceback, and nothing written anywhere."""
    before = await rig.keys()
    ended = await rig.agent().run(*verb.split())
    require(ended, *words, code=code)
    assert await rig.keys() == before
    assert await documents_of(rig) == 0
    return ended


def require(ended: Ended, *words: str, code: int = OPERATOR) -> None:
    """See that a verb ended so, and said so."""
    text = said(ended)
    for word in words:
        assert word in text, text
    assert "Traceback" not in text
    assert ended.code == code, text
    assert "next:" in text, text


async def documents_of(rig: AgentRig) -> int:
    """Return how many collections the target has: none, where nothing was written."""
    async with Client(rig.target.uri) as client:
        names = [n for n in await client.list_database_names() if n not in {"admin", "local", "config"}]
    return len(names)


async def failed(agent: Agent, service: str) -> dict[str, Any]:
    """Wait until a service has failed, and return its row."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        row: dict[str, Any] = (await agent.status())["services"].get(service, {})
        if row.get("state") == "failed":
            return row
        assert asyncio.get_running_loop().time() < deadline, row
        await asyncio.sleep(0.05)


async def replication_fails(rig: AgentRig, *words: str) -> dict[str, Any]:
    """Start replication, which must fail with these words and a hint, and store nothing but its state."""
    agent = rig.agent()
    await agent.start()
    ended = await agent.run("start", "replication", "--follow")
    require(ended, *words)
    row = await failed(agent, "replication")
    assert row["hint"]
    assert not [key for key in await rig.keys() if key.startswith("replication/")]
    assert await documents_of(rig) == 0
    return row


async def test_no_configuration(rig: AgentRig) -> None:
    agent = rig.agent()
    (rig.folder / "d5agent.toml").unlink()
    require(await agent.run("serve"), "no configuration", str(rig.folder / "d5agent.toml"))


async def test_a_configuration_that_is_no_toml(rig: AgentRig) -> None:
    agent = rig.agent()
    (rig.folder / "d5agent.toml").write_text("[source\nuri = ", encoding="utf-8")
    require(await agent.run("serve"), "is not TOML")


async def test_an_unknown_key(rig: AgentRig) -> None:
    rig.config["capture"]["max_segment_secs"] = 1
    await refused(rig, "serve", "unknown key [capture] max_segment_secs")


async def test_an_unknown_section(rig: AgentRig) -> None:
    rig.config["sauce"] = {"uri": "mongodb://a"}
    await refused(rig, "serve", "unknown key [sauce]")


async def test_an_unknown_variable(rig: AgentRig) -> None:
    agent = rig.agent()
    agent._environment["D5AGENT_SOURCES__URI"] = "x"
    require(await agent.run("serve"), "unknown key in the environment: D5AGENT_SOURCES__URI")


async def test_a_value_of_the_wrong_type_is_named_and_not_shown(rig: AgentRig) -> None:
    rig.config["restore"] = {"lanes": "many-secret"}
    ended = await refused(rig, "serve", "[restore] lanes")
    assert "many-secret" not in said(ended)


async def test_a_bad_uri_is_refused_and_not_shown(rig: AgentRig) -> None:
    rig.config["source"]["uri"] = "mongo://user:hush@host"
    ended = await refused(rig, "serve", "the source's URI is wrong")
    assert "hush" not in said(ended)


async def test_no_uri_at_all(rig: AgentRig) -> None:
    del rig.config["target"]["uri"]
    await refused(rig, "plan", "no URI for the target")
    rig.config["source"] = {"flavor": "mongodb"}
    await refused(rig, "serve", "no URI for the source")


async def test_a_bucket_that_is_missing(rig: AgentRig) -> None:
    rig.config["store"]["bucket"] = "no-such-bucket"
    await refused(rig, "serve", "the bucket is missing", "no-such-bucket")


async def test_a_wrong_password(rig: AgentRig, tmp_path: Path) -> None:
    locked = Mongod(tmp_path / "locked", options=ServerOptions(credentials=Credentials(username="a", password="right")))
    await locked.start()
    try:
        rig.config["source"] = {"uri": locked.uri.replace("right", "wr0ng"), "flavor": "mongodb"}
        agent = rig.agent()
        await agent.start()
        await agent.call("start", "replication")
        status = await agent.until(
            lambda status: status["services"]["replication"]["state"] == "waiting", what="waiting", seconds=60
        )
        assert "the source refused user or password" in status["services"]["replication"]["error"]
        assert "wr0ng" not in str(status)
    finally:
        await locked.kill()


async def test_a_source_that_is_no_replica_set(rig: AgentRig, tmp_path: Path) -> None:
    alone = Mongod(tmp_path / "alone")
    member = alone.members[0]
    arguments = [argument for argument in member._argv() if argument not in {"--replSet", "rs0"}]
    member.folder.joinpath("data").mkdir(parents=True)
    member._child = Child(arguments, log=member.log)
    member._child.start()
    await member.start()
    try:
        rig.config["source"] = {"uri": f"mongodb://{member.address}/?replicaSet=rs0", "flavor": "mongodb"}
        await replication_fails(rig, "the source is not a replica set")
    finally:
        await member.kill()


@pytest.mark.parametrize("verb", ["plan", "verify --full"])
async def test_result_that_cannot_be_stored_is_named_first(rig: AgentRig, proxy: S3Proxy, verb: str) -> None:
    proxy.fail(refuse(403, "AccessDenied"), method="PUT", key_prefix="reports/")
    ended = await rig.agent().run(*verb.split())
    require(ended, "could not be stored at the end, so nothing was begun", "AccessDenied", "s3:PutObject")


async def test_wrong_replica_set_is_named(rig: AgentRig) -> None:
    await rig.enable()
    uri = rig.config["target"]["uri"]
    wrong = uri.replace("replicaSet=", "replicaSet=no-")
    rig.config["target"] = {"uri": wrong}
    name = uri.partition("replicaSet=")[2].partition("&")[0]
    await refused(rig, "plan", f"the target is the replica set {name}", f"write replicaSet={name} in [target] uri")
    rig.config["source"]["uri"] = rig.source_uri.replace("replicaSet=rs0", "replicaSet=rs1")
    await replication_fails(rig, "the source is the replica set rs0", "write replicaSet=rs0 in [source] uri")


async def test_change_streams_that_are_not_enabled(rig: AgentRig) -> None:
    await replication_fails(rig, "change streams are not enabled for the whole cluster", "modifyChangeStreams")


async def test_a_token_of_another_cluster(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
    await rig.until_captured(1)
    await agent.kill()
    port = int(rig.gateway.address.split(":")[1])
    await rig.gateway.stop()
    other = Gateway(f"127.0.0.1:{rig.source.port}", listen_port=port, state_path=rig.folder / "another.json")
    await other.start()
    try:
        await rig.enable()
        before = [key for key in await rig.keys() if key.startswith("replication/")]
        await agent.start()
        row = await failed(agent, "replication")
        assert "the resume token is not of this cluster" in row["error"]
        assert row["hint"]
        assert [key for key in await rig.keys() if key.startswith("replication/")] == before
    finally:
        await agent.kill()
        await other.stop()


async def test_a_position_that_is_older_than_the_servers_log(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    await agent.kill()
    async with Client(f"mongodb://{rig.gateway.address}/?directConnection=true&retryWrites=false") as client:
        await client["shop"]["orders"].insert_one({"_id": "lost"})
        await client.admin.command({"d5Gateway": 1, "action": "expireLog"})
    before = [key for key in await rig.keys() if key.startswith("replication/")]
    await agent.start()
    row = await failed(agent, "replication")
    assert "operations are lost to the stream" in row["error"]
    assert "d5agent never resumes from the current time on its own" in row["hint"]
    assert [key for key in await rig.keys() if key.startswith("replication/")] == before


async def test_restore_before_replication_was_ever_ready(rig: AgentRig) -> None:
    agent = rig.agent()
    await agent.start()
    require(await agent.run("start", "restore"), "restore refused: replication has never been ready")
    assert await documents_of(rig) == 0


async def test_clean_before_verify_succeeded(rig: AgentRig) -> None:
    rig.config["backup"]["mongodump"] = "/no/such/mongodump"
    agent = await rig.captured_agent()
    require(await agent.run("start", "clean"), "clean refused: no restore has been started", "d5agent start restore")
    await agent.call("start", "restore")
    await failed(agent, "backup")
    ended = await agent.run("start", "clean")
    require(ended, "clean refused: restore has not verified that both databases are equal", "monitor-restore")
    assert [key for key in await rig.keys() if key.startswith("replication/")]


async def test_a_service_that_does_not_exist(rig: AgentRig) -> None:
    agent = rig.agent()
    await agent.start()
    require(await agent.run("start", "replicaton"), "there is no service or phase called 'replicaton'", "one of:")


async def test_cutover_in_drained_mode(rig: AgentRig) -> None:
    agent = rig.agent()
    await agent.start()
    require(await agent.run("cutover"), "cutover refused: the mode is drained")


async def test_a_second_daemon_on_the_same_state_directory(rig: AgentRig) -> None:
    await rig.agent().start()
    await refused(rig, "serve", "another daemon runs on this state directory", "pid:")


async def test_a_second_daemon_on_the_same_bucket(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    rig.config["state"]["directory"] = str(rig.folder / "other" / "state")
    second = rig.agent("second.toml")
    ended = await second.run("serve")
    require(ended, "another agent holds this log", "host:", "since:")
    assert (await agent.status())["services"]["replication"]["state"] == "running"


async def test_a_broken_chain_is_refused_before_anything_is_written(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        for number in range(3):
            await client["shop"]["orders"].insert_one({"_id": number})
            await rig.until_captured(number + 1)
    keys = await rig.keys()
    commits = sorted(key for key in keys if key.startswith("replication/.log/"))
    segment = next(key for key in keys if key.startswith("replication/shop/"))
    async with rig.store() as store:
        whole = {key: await store.get(key) or b"" for key in (commits[1], segment)}
        for key, body, words in (
            (commits[1], b"", "a commit is missing in the log"),
            (segment, encode({"a": 1}), "a segment is not what its commit says"),
            (segment, b"", "an object of the log is missing"),
            (commits[1], whole[commits[1]].replace(b'"count":1', b'"count":2'), "totals do not add up"),
        ):
            await (store.put(key, body) if body else store.delete([key]))
            require(await agent.run("log", "verify"), words)
            await agent.call("start", "restore")
            row = await failed(agent, "restore")
            assert words in row["error"]
            assert await documents_of(rig) == 0
            await store.put(key, whole[key])
    assert (await agent.json("log", "verify"))["whole"]
    await rig.restored(agent)


async def test_mongodump_that_is_missing(rig: AgentRig) -> None:
    rig.config["backup"]["mongodump"] = "/no/such/mongodump"
    agent = await rig.captured_agent()
    await agent.call("start", "restore")
    row = await failed(agent, "backup")
    assert "/no/such/mongodump cannot be run" in row["error"]
    assert "install MongoDB Database Tools 100.11.0 (package mongodb-database-tools)" in row["hint"]
    assert (await agent.status())["services"]["replication"]["state"] == "running"
    assert await documents_of(rig) == 0


async def test_a_state_file_of_a_newer_version(rig: AgentRig) -> None:
    rig.state.mkdir(parents=True)
    (rig.state / "phase.json").write_text(json.dumps({"version": 99}), encoding="utf-8")
    await refused(rig, "serve", "the phase state is of another version", "version: 99")
    assert json.loads((rig.state / "phase.json").read_text(encoding="utf-8")) == {"version": 99}


@pytest.mark.parametrize("garbage", [b'{"version": 1, "pha', b"\x00\xff\x00", b"[]", b'{"version": 1}', b""])
async def test_a_state_file_that_is_garbage(rig: AgentRig, garbage: bytes) -> None:
    rig.state.mkdir(parents=True)
    (rig.state / "phase.json").write_bytes(garbage)
    await refused(rig, "serve", "damaged", "move")
    assert (rig.state / "phase.json").read_bytes() == garbage


async def test_a_daemon_that_is_down(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    await agent.stop()
    require(await agent.run("start", "replication"), "the daemon is not running", code=TRANSIENT)
    ended = await agent.run("status", "--json")
    assert ended.code == TRANSIENT
    values = json.loads(ended.out)
    assert values["daemon"] == "down"
    assert values["services"]["replication"]["state"] == "running"  # what it will carry on with


async def test_wrong_usage(rig: AgentRig) -> None:
    for arguments in (("start",), ("no-such-verb",), ("status", "--nonsense")):
        ended = await rig.agent().run(*arguments)
        assert ended.code == USAGE
        assert "Traceback" not in said(ended)


async def test_a_file_in_the_place_of_the_control_socket(rig: AgentRig) -> None:
    rig.state.mkdir(parents=True)
    (rig.state / "control.sock").write_text("precious", encoding="utf-8")
    require(await rig.agent().run("serve"), "the control socket's path is taken by a file")
    assert (rig.state / "control.sock").read_text(encoding="utf-8") == "precious"


async def test_an_endpoint_that_is_no_url(rig: AgentRig) -> None:
    rig.config["store"]["endpoint_url"] = "127.0.0.1:nowhere"
    require(await rig.agent().run("serve"), "no S3 client can be made of the configuration", "endpoint_url")
    assert await documents_of(rig) == 0


async def test_a_bucket_whose_name_is_none(rig: AgentRig) -> None:
    rig.config["store"]["bucket"] = "no bucket!"
    require(await rig.agent().run("serve"), "the bucket's name is none", "[store] bucket")


async def test_an_object_store_that_nobody_answers_for(rig: AgentRig) -> None:
    rig.config["store"]["endpoint_url"] = f"http://127.0.0.1:{free_port()}"
    require(await rig.agent().run("serve"), "S3 is not reached", "VPC endpoint", code=TRANSIENT)


async def test_a_log_that_ends_before_its_fence(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    await rig.restored(agent)
    await agent.stop()
    async with rig.store() as store:
        last = max(key for key in await rig.keys() if key.startswith("replication/.log/"))
        certificate = next(key for key in await rig.keys() if key.endswith("/certificate.json"))
        await store.delete([last, certificate])
    state = json.loads((rig.state / "phase.json").read_text(encoding="utf-8"))
    state["fence"]["sequence"] += 1
    state["verified"] = None  # before its proof: after it, a restore is about late operations only
    state["services"]["restore"]["status"] = "running"
    state["services"]["replication"]["status"] = "stopped"
    (rig.state / "phase.json").write_text(json.dumps(state), encoding="utf-8")
    await agent.start()
    row = await failed(agent, "restore")
    assert "the log ends before its fence" in row["error"]
    assert row["hint"]


async def test_a_checkpoint_that_is_damaged(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    (rig.state / "restore_checkpoint.json").write_text('{"version": 1}', encoding="utf-8")
    await agent.call("start", "restore")
    row = await failed(agent, "restore")
    assert "the restore checkpoint is damaged" in row["error"]
    assert "move restore_checkpoint.json aside" in row["hint"]
    assert await documents_of(rig) == 0
