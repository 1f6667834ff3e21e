"""Capture without a target: who needs it opens it, at each of its runs, with what is configured by then."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from d5agent.core.run.services import Service
from d5agent.errors import NotGivenError, OperatorError, TransientError
from d5agent.runtime.disk import Disk
from d5agent.runtime.opening import open_adapters
from d5agent.runtime.wiring import plugins
from d5agent.runtime.with_target import WithTarget
from d5agent.settings import TargetSettings, load_settings
from tests.fakes.stage import Stage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from d5agent.runtime.opening import TargetAdapters
    from d5agent.service import Coordinator
    from d5agent.settings import Settings

NEEDS_TARGET = {Service.BACKUP, Service.RESTORE, Service.VERIFY, Service.MONITOR_RESTORE}


@dataclass(slots=True, kw_only=True)
class Once:
    """A service that fails for a passing reason."""

    target: TargetAdapters
    drains: bool = False
    runs: list[TargetAdapters] = field(default_factory=list)

    async def run(self, coordinator: Coordinator) -> None:
        del coordinator
        self.runs.append(self.target)
        raise TransientError("the line is cut")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "d5agent.toml"
    path.write_text(
        f'[source]\nuri = "mongodb://a/"\n[store]\nbucket = "b"\nregion = "eu-west-1"\n'
        f'[state]\ndirectory = "{tmp_path}"\n'
    )
    return load_settings(path)


async def test_nothing_of_the_target_is_read_before_it_is_needed(settings: Settings) -> None:
    async with open_adapters(settings) as adapters:
        made = plugins(settings, adapters, Disk.open(settings.state.directory), lambda: False)
        for service, make in made.items():
            assert isinstance(make(), WithTarget) == (service in NEEDS_TARGET)
        for service in NEEDS_TARGET:
            with pytest.raises(NotGivenError, match="no URI for the target"):
                await made[service]().run(Stage().coordinator)


async def test_target_is_what_the_section_says_when_it_is_opened(settings: Settings) -> None:
    section = TargetSettings()
    async with open_adapters(settings, reread=lambda: settings.model_copy(update={"target": section})) as adapters:
        with pytest.raises(NotGivenError):
            async with adapters.open_target():
                pass
        for uri, fault in (("mongo://h", "it must begin with"), ("mongodb://h/?loadBalanced=true", "loadBalanced")):
            section = TargetSettings.model_validate({"uri": uri})
            with pytest.raises(OperatorError, match=f"the target's URI is wrong: {fault}"):
                async with adapters.open_target():
                    pass


async def test_each_run_opens_the_target_again_and_closes_it() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def open_target() -> AsyncGenerator[TargetAdapters]:
        events.append("open")
        try:
            yield f"target {len(events)}"  # type: ignore[misc] # what it is does not matter
        finally:
            events.append("close")

    services: list[Once] = []

    def make(target: TargetAdapters) -> Once:
        services.append(Once(target=target))
        return services[-1]

    service = WithTarget(open_target=open_target, make=make)
    for _ in range(2):
        with pytest.raises(TransientError):
            await service.run(Stage().coordinator)
    assert events == ["open", "close", "open", "close"]
    assert [str(service.target) for service in services] == ["target 1", "target 3"]
