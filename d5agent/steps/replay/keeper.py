"""Builds the target's indexes and options again on collections whose names a drop or a rename has taken away."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from d5agent.core.replay.specification import (
    Specification,
    decode_specifications,
    encode_specifications,
    specifications_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from d5agent.core.log.operation import Namespace
    from d5agent.core.replay.replay import Barrier
    from d5agent.core.servers import ServerFacts
    from d5agent.ports import ObjectStore, TargetSpecifications
    from d5agent.service import Journal


async def recorded(
    store: ObjectStore, target: TargetSpecifications, *, run_id: str, server: ServerFacts, at: str
) -> tuple[str, Mapping[Namespace, Specification]]:
    """Return the specifications of the target as they were before restore's first write, and their key.

    They are read and stored once for each target of a run. `server`: the target that is written to now.
    """
    number = 1
    while True:
        key = specifications_key(run_id, number)
        body = await store.get(key)
        if body is None:
            body = encode_specifications(await target.specifications(), run_id=run_id, server=server, at=at)
            if not await store.put_once(key, body):
                body = await store.get(key) or body
        whose, found = decode_specifications(body, key=key)
        if whose is None or whose.is_same(server):
            return key, found
        number += 1


@dataclass(slots=True, kw_only=True)
class Keeper:
    """Knows what collections had, and which have lost it. `lost` is kept in the checkpoint: a repeated drop adds to it.

    `refused`: what the target does not build, in words; it is tried again at each turn, and holds the certificate up.
    """

    target: TargetSpecifications
    specifications: Mapping[Namespace, Specification]
    lost: set[Namespace]
    journal: Journal
    built: set[Namespace] = field(default_factory=set)
    refused: dict[Namespace, str] = field(default_factory=dict)

    def lose(self, barrier: Barrier) -> None:
        """Note what a drop, a rename or a dropDatabase takes from its names."""
        names = {barrier.namespace, barrier.rename_to}
        is_all = barrier.kind == "dropDatabase"
        if not is_all and self.specifications.keys().isdisjoint(names):
            return
        for name in self.specifications:
            if name in names or (is_all and name.database == barrier.namespace.database):
                self.lost.add(name)
                self.refused.pop(name, None)

    async def build(self, namespaces: Iterable[Namespace], *, again: bool = False) -> None:
        """Build what those among these collections have lost; what was refused only `again`."""
        for namespace in sorted(self.lost.intersection(namespaces), key=str):
            if namespace in self.refused and not again:
                continue
            refused = await self.target.build(namespace, self.specifications[namespace])
            if refused:
                self.refused[namespace] = "; ".join(refused)
                self.journal.warning("indexes_not_built", namespace=str(namespace), reason=self.refused[namespace])
                continue
            self.lost.discard(namespace)
            self.refused.pop(namespace, None)
            self.built.add(namespace)
            self.journal.info("indexes_built_again", namespace=str(namespace))

    def obstacles(self) -> list[str]:
        """Return what could not be built, in words."""
        return [f"{namespace}: {reason}" for namespace, reason in sorted(self.refused.items(), key=str)]
