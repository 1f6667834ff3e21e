"""[source] retention_seconds and [metrics] listen: what is taken, and what is refused in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.errors import OperatorError
from d5agent.settings import Settings, load_settings, parse_address

if TYPE_CHECKING:
    from pathlib import Path


def settings_with(folder: Path, section: str, line: str) -> Settings:
    sections = {
        "source": 'uri = "mongodb://a"',
        "target": 'uri = "mongodb://b"',
        "store": 'bucket = "c"',
        "metrics": "",
    }
    sections[section] += f"\n{line}"
    path = folder / "d5agent.toml"
    path.write_text("\n".join(f"[{name}]\n{lines}" for name, lines in sections.items()), encoding="utf-8")
    return load_settings(path)


@pytest.mark.parametrize(("flavor", "seconds"), [("documentdb", 3_600), ("documentdb", 604_800), ("mongodb", 60)])
def test_a_retention_that_the_source_can_have(tmp_path: Path, flavor: str, seconds: int) -> None:
    lines = f'flavor = "{flavor}"\nretention_seconds = {seconds}'
    assert settings_with(tmp_path, "source", lines).source.retention_seconds == seconds


@pytest.mark.parametrize(
    ("flavor", "seconds", "words"),
    [
        ("documentdb", 3_599, "DocumentDB's retention_seconds is between 3600 and 604800"),
        ("documentdb", 604_801, "DocumentDB's retention_seconds is between 3600 and 604800"),
        ("mongodb", 59, "[source] retention_seconds"),
    ],
)
def test_a_retention_that_it_cannot_have(tmp_path: Path, flavor: str, seconds: int, words: str) -> None:
    with pytest.raises(OperatorError) as refused:
        settings_with(tmp_path, "source", f'flavor = "{flavor}"\nretention_seconds = {seconds}')
    assert words in refused.value.message


def test_without_a_word_there_are_no_metrics(tmp_path: Path) -> None:
    assert settings_with(tmp_path, "metrics", "").metrics.listen is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),  # noqa: S104 -- a text, nothing listens
        ("[::1]:9464", ("::1", 9464)),
        ("metrics.internal:65535", ("metrics.internal", 65_535)),
    ],
)
def test_an_address(tmp_path: Path, text: str, address: tuple[str, int]) -> None:
    listen = settings_with(tmp_path, "metrics", f'listen = "{text}"').metrics.listen
    assert listen is not None
    assert parse_address(listen) == address


@pytest.mark.parametrize(
    "text", ["", "9464", ":9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "::1:9464", "[::1]"]
)
def test_what_is_no_address_is_refused_and_an_example_given(tmp_path: Path, text: str) -> None:
    with pytest.raises(OperatorError, match=r"\[metrics\] listen: (it must be HOST:PORT, such as|its port must be)"):
        settings_with(tmp_path, "metrics", f'listen = "{text}"')
