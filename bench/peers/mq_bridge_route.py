"""Run mq-bridge's route of the given configuration until it ends; it has no program of its own on PyPI."""

import sys
import time

import mq_bridge  # type: ignore[import-not-found]  # in the peer's own environment

route = mq_bridge.Route.from_file(sys.argv[1])
print(f"began {time.time()}", flush=True)
route.run()
