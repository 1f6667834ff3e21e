"""The soak in short: the daemon is killed at random moments under load, and the log is held to the writers' books.

`make soak` does the same for hundreds of kills.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest

from tests.soak.plan import plan
from tests.soak.soak import soak

if TYPE_CHECKING:
    from d5agent.drill.s3_server import S3Server
    from d5agent.drill.servers import Mongod

KILLS = 6
# Its plan has kills while the daemon starts, a SIGTERM, and every kind of trouble at the gateway.
KNOWN_SEED = 233


@pytest.mark.parametrize("is_known", [True, False], ids=["a known seed", "a new seed"])
async def test_killed_at_random_moments_it_loses_doubles_and_reorders_nothing(
    source_server: Mongod, s3_server: S3Server, bucket: str, *, is_known: bool
) -> None:
    seed = KNOWN_SEED if is_known else random.SystemRandom().randrange(10**9)
    chosen = plan(seed, kills=KILLS, loses_disks=False)
    sys.stdout.write(f"{chosen.command}\n")  # for a run that is cut off by its time limit
    report = await soak(source_server, s3_server, bucket, chosen)
    assert not report.faults, str(report)
    assert report.captured >= report.acknowledged > 0
