"""The documents and the program agree: keys, services, links, and the pages that hints name."""

from __future__ import annotations

import re
from pathlib import Path

from d5agent.core.phase import Service
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


def test_every_service_is_in_the_readme() -> None:
    readme = text_of("README.md")
    assert not [service for service in Service if f"`{service}`" not in readme]


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
    headings = text_of("docs/runbook/README.md").lower()
    for heading in re.findall(r"docs/runbook, '([^']+)'", program):
        assert f"## {heading}" in headings
