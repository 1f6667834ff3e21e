"""Print what uv needs to use the package index that pip is configured for.

uv does not read pip's configuration. Output: NAME=VALUE, each ended by a NUL byte, for variables of uv that are not
set yet. An index URL may hold a password: setup.sh reads the output through a pipe and exports it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# A later section wins, as in pip.
_SECTIONS = ("global", "install", ":env:")
_DEBIAN_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_TRUE = ("1", "true", "yes", "on", "y", "t")


def pip_options(listing: str) -> dict[str, str]:
    """Return the options in the output of `pip config list`, by name without section."""
    found: dict[str, str] = {}
    lines = [line.partition("=") for line in listing.splitlines()]
    for section in _SECTIONS:
        for key, _, value in lines:
            if key.startswith(f"{section}."):
                found[key.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    return found


def uv_settings(pip: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for uv; a group that the environment sets already is left out."""
    groups = [_trust(pip, environment), _connection(pip)]
    if not any(name in environment for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")):
        groups.append(_indexes(pip))
    return {name: value for group in groups for name, value in group.items() if value and name not in environment}


def _indexes(pip: Mapping[str, str]) -> dict[str, str]:
    settings = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": " ".join(pip.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
    }
    if settings["UV_INDEX"]:
        # pip looks for a pin in all indexes; uv would stop at the first one that has the name. The hash decides.
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if pip.get("no-index", "").lower() in _TRUE:
        settings["UV_OFFLINE"] = "1"
    if pip.get("keyring-provider") == "subprocess":
        settings["UV_KEYRING_PROVIDER"] = "subprocess"
    return settings


def _trust(pip: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    bundle = pip.get("cert") or environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE") or ""
    return {
        # Debian's pip trusts the system's certificates, to which a company's own may have been added.
        "UV_SYSTEM_CERTS": "1" if _DEBIAN_CERTIFICATES.is_file() else "",
        "SSL_CLIENT_CERT": pip.get("client-cert", ""),
        "SSL_CERT_DIR" if bundle and Path(bundle).is_dir() else "SSL_CERT_FILE": bundle,
    }


def _connection(pip: Mapping[str, str]) -> dict[str, str]:
    return {"UV_HTTP_TIMEOUT": pip.get("timeout") or pip.get("default-timeout", ""), "ALL_PROXY": pip.get("proxy", "")}


def main() -> None:
    """Ask pip, print for uv."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    settings = uv_settings(pip_options(listing), os.environ)  # noqa: TID251 - pip and uv are configured there
    sys.stdout.write("".join(f"{name}={value}\0" for name, value in settings.items()))


if __name__ == "__main__":
    main()
