"""What a server says of itself: who it is, so that source and target are never taken for each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_THIS_MACHINE: Final = ("localhost:", "127.", "[::1]:", "::1:")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One of the two clusters. `hosts`: of its URI, then those that it names itself, as host:port in small letters.

    `cluster_id`: empty where it has none, or does not tell (DocumentDB). Names of sets prove nothing.
    """

    hosts: tuple[str, ...]
    set_name: str = ""
    cluster_id: str = ""
    version: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "hosts": list(self.hosts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ServerFacts:
        """Return what `to_json` wrote."""
        return cls(**{**value, "hosts": tuple(value["hosts"])})

    def is_same(self, other: ServerFacts) -> bool:
        """Whether this is the cluster that it was: by its id, else by a host that both name.

        Equal names of sets prove nothing, but a host whose set has another name is another cluster's by now.
        """
        if self.cluster_id and other.cluster_id:
            return self.cluster_id == other.cluster_id
        if self.set_name and other.set_name and self.set_name != other.set_name:
            return False
        return not set(self.hosts).isdisjoint(other.hosts)

    def in_words(self) -> str:
        """Return what an operator knows it by."""
        named = (("set", self.set_name), ("id", self.cluster_id), ("hosts", ", ".join(self.hosts)))
        return "; ".join(f"{name} {value}" for name, value in named if value)


def hosts_of(asked: Iterable[str], told: Iterable[str]) -> tuple[str, ...]:
    """Return a server's hosts: as its URI has them, and as it names itself.

    A name that it gives itself and that means its own machine says nothing to others.
    """
    known = (host.lower() for host in told)
    return tuple(dict.fromkeys([*map(str.lower, asked), *(h for h in known if not h.startswith(_THIS_MACHINE))]))
