"""The documents and the program agree: keys, services, links, and the pages that hints name."""

from __future__ import annotations

import re
from pathlib import Path

from d5agent import errors
from d5agent.core.services import Phase, Service
from d5agent.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_setting_is_documented_and_none_too_many() -> None:
    keys = {
        f"[{section}] {key}"
        for section, field in Settings.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]  # each section is a model
    }
    documented = set(re.findall(r"^\| `(\[\w+\] \w+)`", text_of("docs/configuration.md"), flags=re.MULTILINE))
    assert documented == keys


def test_every_service_and_phase_is_in_the_readme() -> None:
    readme = text_of("README.md")
    names = {*map(str, Service), *map(str, Phase)} - {Phase.IDLE.value}
    assert not [name for name in names if f"`{name}`" not in readme]


def test_every_exit_code_is_in_the_readme() -> None:
    line = re.search(r"^Exit codes: .*", text_of("README.md"), flags=re.MULTILINE)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert line
    assert {int(code) for code in re.findall(r"\d+", line[0])} == codes


def test_every_link_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith("http") and not (page.parent / target).exists()
    ]
    assert not broken


def test_every_page_and_heading_that_the_program_names_is_there() -> None:
    program = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "d5agent").rglob("*.py"))
    pages = set(re.findall(r"docs/[\w/-]+\.md", program))
    assert pages
    assert not [page for page in pages if not (ROOT / page).exists()]
    named = re.findall(r"docs/runbook, '([^']+)'|docs/runbook: ([\w ]+)\)", program)
    assert named
    headings = text_of("docs/runbook/README.md").lower().splitlines()
    assert not [heading for pair in named if f"## {(heading := ''.join(pair))}" not in headings]


def test_both_runbooks_have_the_same_sections() -> None:
    english, spanish = (
        re.findall(r"^#+ ", text_of(f"docs/runbook/README{end}.md"), flags=re.MULTILINE) for end in ("", ".es")
    )
    assert english == spanish


def test_every_test_that_the_failure_modes_name_is_there() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    page = text_of("docs/failure-modes.md")
    assert not [name for name in re.findall(r"`(test_\w+)`", page) if f"def {name}(" not in tests]
    files = re.findall(r"`([\w/]+\.py)`", page)
    assert not [file for file in files if not (ROOT / file).exists() and not (ROOT / "d5agent" / file).exists()]
