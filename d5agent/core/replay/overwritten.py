"""Documents of the target that no dump holds, as they were before restore could overwrite them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from d5agent.core.backup import position_from_json, position_to_json, run_folder
from d5agent.core.log.naming import REPORTS
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId

AGAIN: Final = "restore was started again with --again: what others wrote after MongoDB was put back is not told apart"
_VERSION: Final = 1
_MOST_NAMED: Final = 1000  # names that somebody dropped or renamed


def overwritten_folder(run_id: str) -> str:
    """Return what the keys of a run's kept documents begin with."""
    return f"{REPORTS}{run_id}/overwritten/"


def overwritten_key(run_id: str) -> str:
    """Return the key of what is known of them: it comes after all that it names, and before restore's first write."""
    return f"{overwritten_folder(run_id)}index.json"


class KeptDocument(NamedTuple):
    """A document of the target. `state`: why it is kept; `target` None: somebody has deleted it."""

    namespace: Namespace
    id: DocumentId
    state: str
    target: bytes | None

    def versions(self) -> dict[str, bytes | None]:
        """Return its only version."""
        return {"target": self.target}


@dataclass(slots=True, kw_only=True)
class Look:
    """One look at what others wrote while no hold was on the target. `why`: why all of it is not known.

    `since`: the position in the target's change stream that it began at. `moved`: names that were dropped or renamed.
    """

    server: ServerFacts
    at: str
    since: bytes | None = None
    why: str = ""
    documents: int = 0
    deleted: int = 0
    moved: dict[str, None] = field(default_factory=dict)
    moved_total: int = 0

    def name_moved(self, names: Iterable[Namespace | None]) -> None:
        """Note names that somebody has dropped or renamed; of many, only the first are named."""
        self.moved_total += 1
        if len(self.moved) < _MOST_NAMED:
            self.moved.update((str(name), None) for name in names if name is not None)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "server": self.server.to_json(),
            "at": self.at,
            "since": position_to_json(self.since),
            "why": self.why,
            "documents": self.documents,
            "deleted": self.deleted,
            "moved": list(self.moved),
            "moved_total": self.moved_total,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Look:
        """Return what `to_json` gave."""
        return cls(
            **{
                **value,
                "server": ServerFacts.from_json(value["server"]),
                "since": position_from_json(value["since"]),
                "moved": dict.fromkeys(value["moved"]),
            }
        )


@dataclass(slots=True, kw_only=True)
class Overwritten:
    """All that is known of a run's kept documents.

    `open_why`: why the target could not be closed to others for some time. `pages`: the objects of each page with their
    sha256. `repaired`: how many documents were kept before a repair overwrote them, in pages of their own.
    """

    run_id: str
    looks: list[Look] = field(default_factory=list)
    open_why: str = ""
    pages: list[dict[str, Any]] = field(default_factory=list)
    repaired: int = 0
    repaired_pages: int = 0

    def looks_at(self, server: ServerFacts) -> list[Look]:
        """Return the looks at one target."""
        return [look for look in self.looks if look.server.is_same(server)]

    def summary(self, server: ServerFacts, doubts: Iterable[str] = ()) -> dict[str, Any]:
        """Return what the certificate says. `doubts`: why more may have been overwritten than is known."""
        looks = self.looks_at(server)
        reasons = dict.fromkeys(look.why for look in looks if look.why)
        if not looks:
            reasons["nobody has looked at what was written to this target"] = None
        if self.open_why:
            reasons[f"others could write to the target while restore was at work: {self.open_why}"] = None
        reasons.update(dict.fromkeys(doubts))
        return {
            "state": "not known" if reasons else "complete",
            "why": "; ".join(reasons),
            "documents": sum(look.documents for look in looks) + self.repaired,
            "deleted": sum(look.deleted for look in looks),
            "repaired": self.repaired,
            "moved": [name for look in looks for name in look.moved][:_MOST_NAMED],
            "key": overwritten_key(self.run_id),
            "dump": f"{run_folder(self.run_id)}target/",
        }

    def encode(self) -> bytes:
        """Return it as it is stored."""
        value = {
            "version": _VERSION,
            "kind": "documents of the target that no dump holds",
            "run_id": self.run_id,
            "looks": [look.to_json() for look in self.looks],
            "open_why": self.open_why,
            "pages": self.pages,
        }
        return json.dumps(value, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def decode_overwritten(body: bytes, *, key: str) -> Overwritten:
    """Return what `encode` gave. CorruptDataError: it is damaged, or of another version."""
    try:
        value = json.loads(body)
        if value["version"] == _VERSION:
            looks = [Look.from_json(look) for look in value["looks"]]
            run_id, open_why, pages = str(value["run_id"]), str(value["open_why"]), list(value["pages"])
            return Overwritten(run_id=run_id, looks=looks, open_why=open_why, pages=pages)
        reason = f"version {value['version']}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = type(error).__name__
    raise CorruptDataError(
        "what is known of overwritten documents is damaged, or of another version",
        hint="bring the object back (bucket versioning), or run the d5agent version that wrote it; then type: d5agent"
        " start restore",
        key=key,
        reason=reason,
    )
