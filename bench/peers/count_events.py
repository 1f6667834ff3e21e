"""Count what lies in a folder of objects, decoded: how many events, how many of them with a document; as JSON."""

import json
import sys
from pathlib import Path

# In an environment of its own.
import pyarrow as pa  # type: ignore[import-not-found]
from pyarrow import parquet

counts = {"insert": 0, "update": 0, "without a document": 0}


def add(operation: str, document: str | None) -> None:
    """Count one event."""
    counts[operation] += 1
    counts["without a document"] += not (document and "filler" in json.loads(document))


for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.suffix == ".parquet":  # rivet
        table = parquet.read_table(path)
        for operation, document in zip(table["__op"].to_pylist(), table["document"].to_pylist(), strict=True):
            add(operation, document)
    elif ".jsonl" in path.suffixes:  # mq-bridge
        for line in pa.input_stream(path, compression="detect").read().splitlines():
            event = json.loads(line)
            add(event["metadata"]["mongodb.operation"], event["payload"])
print(json.dumps(counts))
