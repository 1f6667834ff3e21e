"""python -m tests.soak: hundreds of kills at random moments under load; ends with 1 when anything was lost."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod
from tests.soak.plan import plan
from tests.soak.soak import soak

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.soak.plan import Plan


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="SIGKILLs in all (default: %(default)s)")
    parser.add_argument("--kills-a-run", type=int, default=30, help="each run has a log of its own")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run; default: the time")
    parser.add_argument("--repeat", type=int, default=1, help="times each run: what hangs on a moment may need some")
    parser.add_argument("--short", action="store_true", help="no lost disks, as in make test")
    return parser.parse_args()


def _plans(arguments: argparse.Namespace) -> Iterator[Plan]:
    seed, left = arguments.seed, arguments.kills
    while left > 0:
        kills = min(left, arguments.kills_a_run)
        yield from [plan(seed, kills=kills, loses_disks=not arguments.short)] * arguments.repeat
        seed, left = seed + 1, left - kills


async def _run(arguments: argparse.Namespace) -> int:
    reports = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d5-soak-", ignore_cleanup_errors=True)))
        source, s3 = Mongod(folder / "source"), S3Server(folder)
        stack.push_async_callback(source.kill)
        stack.push_async_callback(s3.stop)
        await source.start()
        await s3.start()
        _say(f"{arguments.kills} kills from seed {arguments.seed} on")
        for number, each in enumerate(_plans(arguments)):
            bucket = f"soak-{number}"
            await s3.create_bucket(bucket)
            reports.append(await soak(source, s3, bucket, each))
            _say(str(reports[-1]))
    failed = sum(bool(report.faults) for report in reports)
    _say(
        f"{len(reports)} runs, {sum(report.plan.kills for report in reports)} kills, "
        f"{sum(report.acknowledged for report in reports)} acknowledged, "
        f"{sum(report.seconds for report in reports):.0f} s: {failed} failed"
    )
    return int(failed > 0)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(_arguments())))
