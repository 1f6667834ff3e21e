"""Our side of the backup benchmark, as a process of its own: the service in a daemon, as the settings make it.

Argument: a JSON of uri, source (the URI of an empty server), s3, bucket, state, mongodump. Prints a JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import structlog
from peak import peak_mib

from d5agent.core.run.services import PhaseState, Service, Status
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.disk import Disk
from d5agent.runtime.opening import open_adapters
from d5agent.runtime.wiring import plugins
from d5agent.settings import BackupSettings, Settings, SourceSettings, StateSettings, StoreSettings, TargetSettings

_LOOK_SECONDS = 0.02


def settings_of(values: dict[str, Any]) -> Settings:
    """Return the settings of an agent whose source is empty."""
    return Settings(
        source=SourceSettings(uri=values["source"], flavor="mongodb"),
        target=TargetSettings(uri=values["uri"]),
        store=StoreSettings(bucket=values["bucket"], endpoint_url=values["s3"], region="us-east-1"),
        state=StateSettings(directory=Path(values["state"])),
        backup=BackupSettings(mongodump=values["mongodump"], databases=("bench",)),
    )


def cpu_seconds(who: int) -> float:
    """Return the CPU seconds of us, or of our children that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


async def main(values: dict[str, Any]) -> None:
    """Back up once, and print what it took."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    settings = settings_of(values)
    async with open_adapters(settings) as adapters:
        daemon = Daemon(
            plugins=plugins(settings, adapters, Disk.open(Path(values["state"])), lambda: False),
            states=adapters.states,
            clock=adapters.clock,
            drain_seconds=10,
        )
        daemon.file.state = PhaseState(run_id="bench", ready_at="2026-11-02T08:00:00+00:00")
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(daemon.serve(group))
            await asyncio.sleep(0)
            await daemon.start(Service.BACKUP)
            while daemon.state.status(Service.BACKUP) not in {Status.DONE, Status.FAILED}:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(_LOOK_SECONDS)
            seconds = time.perf_counter() - began
            daemon.end()
        assert daemon.state.status(Service.BACKUP) is Status.DONE, daemon.state
    took = {
        "seconds": seconds,
        "agent_cpu": cpu_seconds(resource.RUSAGE_SELF),
        "mongodump_cpu": cpu_seconds(resource.RUSAGE_CHILDREN),
        "peak_mib": peak_mib(),
    }
    sys.stdout.write(json.dumps(took))


asyncio.run(main(json.loads(sys.argv[1])))
