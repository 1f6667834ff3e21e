"""python -m d5agent.drill.gateway: serve until SIGTERM, and die with the parent."""

import argparse
import asyncio
import ctypes
import json
import signal
import sys
from pathlib import Path

from d5agent.drill.gateway.server import Gateway

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Linux only; elsewhere the gateway outlives a killed parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="d5agent.drill.gateway", description=__doc__)
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--set-name", default="rs0")
    parser.add_argument("--allow", action="append", default=[], metavar="COMMAND")
    parser.add_argument("--state", type=Path, metavar="FILE")
    parser.add_argument("--no-post-batch-token", action="store_true")
    parser.add_argument("--log-seconds", type=int)
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    host, _, port = arguments.listen.rpartition(":")
    gateway = Gateway(
        arguments.upstream,
        listen_host=host,
        listen_port=int(port),
        set_name=arguments.set_name,
        allow=frozenset(arguments.allow),
        state_path=arguments.state,
        no_post_batch_token=arguments.no_post_batch_token,
        log_seconds=arguments.log_seconds,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await gateway.start()
    sys.stdout.write(json.dumps({"address": gateway.address}) + "\n")
    sys.stdout.flush()
    await stopped.wait()
    await gateway.stop()


def main() -> None:
    _die_with_parent()
    asyncio.run(_serve(_arguments()))


if __name__ == "__main__":
    main()
