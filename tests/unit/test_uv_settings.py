"""The package index that pip is configured for is handed to uv."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.uv_settings import pip_options, uv_settings

if TYPE_CHECKING:
    from pathlib import Path

_INDEX = "https://user:secret@index.invalid/simple"


def test_environment_wins_over_pip_configuration_files() -> None:
    listing = f":env:.cert='/env.pem'\nglobal.cert='/global.pem'\nglobal.index-url='{_INDEX}?a=b'\n"
    assert pip_options(listing) == {"cert": "/env.pem", "index-url": f"{_INDEX}?a=b"}


def test_pip_indexes_become_those_of_uv() -> None:
    pip = {"index-url": _INDEX, "extra-index-url": "\nhttps://a.invalid\nhttps://b.invalid", "find-links": "/one /two"}
    settings = uv_settings(pip, {})
    assert settings["UV_DEFAULT_INDEX"] == _INDEX
    assert settings["UV_INDEX"] == "https://a.invalid https://b.invalid"
    assert settings["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert settings["UV_FIND_LINKS"] == "/one,/two"


def test_own_index_of_uv_is_kept() -> None:
    settings = uv_settings({"index-url": _INDEX, "extra-index-url": _INDEX}, {"UV_INDEX_URL": "https://mine.invalid"})
    assert not {"UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_STRATEGY"} & settings.keys()


def test_no_index_makes_uv_stay_offline() -> None:
    assert uv_settings({"no-index": "true"}, {})["UV_OFFLINE"] == "1"
    assert "UV_OFFLINE" not in uv_settings({"no-index": "false"}, {})


def test_certificates_of_pip_are_trusted_by_uv(tmp_path: Path) -> None:
    assert uv_settings({"cert": "/pip.pem"}, {})["SSL_CERT_FILE"] == "/pip.pem"
    assert uv_settings({"cert": str(tmp_path)}, {})["SSL_CERT_DIR"] == str(tmp_path)
    assert uv_settings({}, {"REQUESTS_CA_BUNDLE": "/requests.pem"})["SSL_CERT_FILE"] == "/requests.pem"
    assert "SSL_CERT_FILE" not in uv_settings({"cert": "/pip.pem"}, {"SSL_CERT_FILE": "/own.pem"})
