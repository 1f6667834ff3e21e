"""With the profile `soak`, the properties are the soak: the same tests, many more examples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests; `make soak` asks for the mark."""
    if os.environ.get("HYPOTHESIS_PROFILE") == "soak":
        for item in items:
            if _HERE in item.path.parents:
                item.add_marker(pytest.mark.soak)
