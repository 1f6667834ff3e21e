"""Where the programs are that the drill runs: on PATH, or where `make setup` put them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from d5agent.errors import OperatorError

_PROJECT = Path(__file__).resolve().parents[2]


def tools_folder() -> Path:
    """Return $D5AGENT_TOOLS, else the folder that `make setup` fills beside the package."""
    # The drill needs no configuration file, so this is not one of its settings.
    override = os.environ.get("D5AGENT_TOOLS")  # noqa: TID251 - as said above
    return Path(override) if override else _PROJECT / ".tools"


def inherited_environment(**additions: str) -> dict[str, str]:
    """Return our environment with additions, for a child."""
    return {**os.environ, **additions}  # noqa: TID251 - handed on, not read


def find_tool(name: str) -> Path:
    """Return the program of that name: PATH first, then the tools folder."""
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path)
    return _require(tools_folder() / "bin" / name, name)


def find_s3_python() -> Path:
    """Return the Python of the S3 server's own virtual environment."""
    return _require(tools_folder() / "s3-server" / "bin" / "python", "the S3 server")


def _require(path: Path, name: str) -> Path:
    if not os.access(path, os.X_OK):
        raise OperatorError(f"{name} is not installed", hint="make setup", looked_at=str(path))
    return path
