"""Keys in journal lines, errors and answers are addresses, and nothing else is changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
import structlog

from d5agent.cli import _ask, _run, _show
from d5agent.core.reports.addresses import addressed, addressed_json, with_addresses
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.runtime import control_client
from d5agent.runtime.logs import configure_logs
from d5agent.screen.terminal import print_error
from d5agent.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from d5agent.settings import Settings

RUN: Final = "0b3c6f0e-1d2a-4f57-9d0a-0c8d2f1f6a11"
KEYS: Final = (
    f"reports/{RUN}/certificate.json",
    f"reports/{RUN}/late/000000000007-2026-11-28T101112.000/report.json",
    f"reports/{RUN}/",
    "reports/no-run/verify-full-20261128T101112.json",
    f"dump/{RUN}/target/caf%C3%A9.archive.gz",
    f"dead-letter/{RUN}/shop.orders~1.json",
    f"archive/{RUN}/replication/.log/000000000007.json",
    "replication/.log/000000000007.json",
    "replication/.log/rollup/000000000000.json",
    "replication/shop/orders/1793600000-0000000001_65f0%5F.bson.zst",
    "replication/.mixed/1793600000-0000000001_~none_2.bson",
    "replication/shop/.database/1793600000-0000000001_~none.bson",
    "state/phase.json",
)
OTHERS: Final = (
    "insert shop.orders reports/2026/november.pdf",
    f"/var/lib/d5agent/reports/{RUN}/x",
    f"s3://other/d5/reports/{RUN}/certificate.json",
    "mirrored under state/ in the bucket",
    "docs/runbook, 'the position is lost'",
    "and/or",
    "/var/lib/d5agent/state/phase.json",
)


def url_of(key: str) -> str:
    return f"s3://bucket/d5/{key}"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("around", ["{}", "read {}, then type: d5agent start clean", "({})", "see {}.", "'{}': gone"])
def test_a_key_becomes_an_address(key: str, around: str) -> None:
    text = with_addresses(around.format(key), url_of)
    assert text == around.format(url_of(key))
    assert with_addresses(text, url_of) == text


@pytest.mark.parametrize("text", OTHERS)
def test_other_words_stay(text: str) -> None:
    assert with_addresses(text, url_of) == text


def test_all_texts_of_a_value_are_looked_at_but_exact_fields() -> None:
    key = KEYS[0]
    value = {"key": key, "report": key, "url": url_of(key), "rows": [{"hint": f"see {key}"}, (key, 7, None, True)]}
    assert addressed(value, url_of)["key"] == url_of(key)
    assert addressed_json(value, url_of) == {
        "key": key,
        "report": key,
        "url": url_of(key),
        "rows": [{"hint": f"see {url_of(key)}"}, [url_of(key), 7, None, True]],
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "d5agent.toml"
    path.write_text('[source]\nuri = "mongodb://a/"\n[store]\nbucket = "bucket"\nprefix = "d5"\n', encoding="utf-8")
    return load_settings(path)


def test_a_journal_line_names_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(to_journald=True, url_of=url_of)
    try:
        structlog.get_logger().warning("clean_refused", key=KEYS[0], hint=f"see {KEYS[1]}", first=[{"key": KEYS[5]}])
        structlog.get_logger().error("service_failed", exc_info=ValueError(f"broken: {KEYS[7]}"))
    finally:
        structlog.reset_defaults()
    out = capsys.readouterr().out
    assert f"key={url_of(KEYS[0])} hint=see {url_of(KEYS[1])} first=[{{'key': '{url_of(KEYS[5])}'}}]" in out
    assert f"ValueError: broken: {url_of(KEYS[7])}" in out


def test_an_error_of_a_verb_names_addresses(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        raise CorruptDataError(f"{KEYS[7]} is damaged", hint=f"bring {KEYS[7]} back", key=KEYS[7])

    with pytest.raises(CorruptDataError) as raised:
        _run(settings, fail())
    print_error(raised.value)
    assert capsys.readouterr().err.splitlines() == [
        f"d5agent: {url_of(KEYS[7])} is damaged",
        f"  key: {url_of(KEYS[7])}",
        f"  next: bring {url_of(KEYS[7])} back",
    ]


def test_an_error_without_settings_stays_as_it_is() -> None:
    async def fail() -> None:
        raise OperatorError("no", hint=KEYS[0])

    with pytest.raises(OperatorError) as raised:
        _run(None, fail())
    assert raised.value.hint == KEYS[0]


async def test_an_answer_of_the_daemon_names_addresses(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(_: Path, __: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        yield {"event": "late_operations_reported", "facts": {"report": KEYS[1]}}
        yield {"exit": 78, "error": f"see {KEYS[0]}", "hint": f"read {KEYS[1]}"}

    monkeypatch.setattr(control_client, "ask", ask)
    assert await _ask(settings, {"verb": "start"}) == 78
    said = capsys.readouterr()
    assert said.out.strip() == f"late_operations_reported report={url_of(KEYS[1])}"
    assert said.err.splitlines() == [f"d5agent: see {url_of(KEYS[0])}", f"  next: read {url_of(KEYS[1])}"]


def test_a_table_and_json_name_addresses(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"key": KEYS[0], "url": url_of(KEYS[0]), "found": f"see {KEYS[5]}"}
    _show(settings, values, as_json=False, table=lambda values: values["found"])
    _show(settings, values, as_json=True, table=None)
    table, text = capsys.readouterr().out.splitlines()
    assert table == f"see {url_of(KEYS[5])}"
    assert json.loads(text) == {**values, "found": f"see {url_of(KEYS[5])}"}


def test_a_segment_or_archive_may_be_asked_for_by_its_address(settings: Settings) -> None:
    assert settings.store.key_of(url_of(KEYS[9])) == KEYS[9]
    assert settings.store.key_of("s3://bucket/d5/replication/shop/") == "replication/shop/"
    assert settings.store.key_of(KEYS[9]) == KEYS[9]
