"""Which rows of currentOp write: commands that change data are named, whatever they are called by.

Rows hold pieces of users' commands; a server cuts long ones to a text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from d5agent.adapters.mongo import APP_NAME, SYSTEM_DATABASES
from d5agent.core.log.operation import OWN_DATABASE

if TYPE_CHECKING:
    from collections.abc import Mapping

_OPERATIONS: Final = frozenset({"insert", "update", "delete", "remove"})
_COMMANDS: Final = frozenset(
    {
        *("insert", "update", "delete", "findandmodify", "bulkwrite", "applyops"),
        *("drop", "dropdatabase", "renamecollection", "converttocapped", "clonecollectionascapped"),
    }
)
_WRITING_STAGES: Final = frozenset({"$out", "$merge"})
_OF_ANOTHER_DATABASE: Final = frozenset({"renamecollection", "bulkwrite"})  # run on admin
_TRUNCATED: Final = "$truncated"
_FIRST_WORD: Final = re.compile(r"\s*\{?\s*\"?(\w+)")


def writing(row: Mapping[str, Any]) -> str | None:
    """Return what a row writes, for people; None: it is nobody's write, or our own.

    An open transaction counts, since it may yet write.
    """
    if row.get("appName") == APP_NAME:
        return None
    command = _command_of(row)
    name = _name_of(command)
    database = _database(row, command, name)
    if database in SYSTEM_DATABASES | {OWN_DATABASE}:
        return None
    if (row.get("transaction") or {}).get("parameters", {}).get("autocommit") is False:
        what = str(row.get("op", "?"))
    elif row.get("active") and database and _is_write(row, command, name):
        what = name if row.get("op") in {"command", "getmore", "query", None} else str(row["op"])
    else:
        return None
    return f"{what} on {row.get('ns', '?')} since {row.get('secs_running', 0)} s"


def _is_write(row: Mapping[str, Any], command: Mapping[str, Any], name: str) -> bool:
    if name == "aggregate":
        return _writes_its_result(command)
    if name == "mapreduce":
        return "inline" not in (command.get("out") or {})
    return row.get("op") in _OPERATIONS or name in _COMMANDS


def _command_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row's command; of a getMore, the one that its cursor belongs to."""
    command: Mapping[str, Any] = row.get("command") or {}
    if _name_of(command) != "getmore":
        return command
    originating = (row.get("cursor") or {}).get("originatingCommand") or row.get("originatingCommand")
    return originating or command


def _writes_its_result(aggregate: Mapping[str, Any]) -> bool:
    """Whether a pipeline ends in a collection; one that the server has cut may."""
    pipeline = aggregate.get("pipeline")
    if pipeline is None:
        return True
    return any(not _WRITING_STAGES.isdisjoint(stage) for stage in pipeline if not isinstance(stage, str))


def _name_of(command: Mapping[str, Any]) -> str:
    """Return a command's name, which is its first field, or the first word of its text, in small letters."""
    name = next(iter(command), "")
    if name == _TRUNCATED:
        found = _FIRST_WORD.match(str(command[_TRUNCATED]))
        name = found[1] if found else ""
    return name.lower()


def _database(row: Mapping[str, Any], command: Mapping[str, Any], name: str) -> str:
    """Return the database that a row is about; for a command that names another one, that."""
    if name not in _OF_ANOTHER_DATABASE:
        return str(row.get("ns", "")).split(".")[0]
    named = command.get("renameCollection") or next((each.get("ns") for each in command.get("nsInfo") or ()), None)
    return str(named or "?").split(".")[0]
