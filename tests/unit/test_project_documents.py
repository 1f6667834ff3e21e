"""What a maintainer looks for is there: the license, how to contribute, the promises, decisions, the architecture."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from d5agent.core.run.services import Phase, Service

ROOT = Path(__file__).parents[2]
# Of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_license_is_apache_2() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256


def test_contributing_names_existing_files_and_targets() -> None:
    page = text_of("CONTRIBUTING.md")
    paths = [path for path in re.findall(r"`((?:d5agent|tests|polkit)/[^` ]+)`", page) if "NAME" not in path]
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]
    targets = set(re.findall(r"^([a-z][a-z-]*):", text_of("Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)`", page)) | set(re.findall(r"^    make ([a-z-]+)$", page, re.MULTILINE))
    assert "setup" in named
    assert not named - targets


def test_contributing_shows_a_fault_test_over_real_names() -> None:
    block = re.search(r"```python\n(.*?)```", text_of("CONTRIBUTING.md"), flags=re.DOTALL)
    assert block
    for module, names in re.findall(r"^from (tests\.\S+) import (.+)$", block[1], flags=re.MULTILINE):
        source = text_of(module.replace(".", "/") + ".py")
        for name in names.split(", "):
            assert re.search(rf"^(?:class|async def|def) {name}\b|^{name}\b", source, flags=re.MULTILINE), name


def test_every_promise_that_is_cited_exists() -> None:
    promises = {int(number) for number in re.findall(r"^## P(\d+)\. ", text_of("docs/promises.md"), flags=re.MULTILINE)}
    assert promises == set(range(1, len(promises) + 1))
    assert len(promises) == 13
    texts = [
        *(ROOT / "d5agent").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
    ]
    cited = {
        (path.relative_to(ROOT).as_posix(), int(number))
        for path in texts
        for numbers in re.findall(r"\bP(\d+)\b|\b[Pp]romise (\d+)\b", path.read_text(encoding="utf-8"))
        for number in numbers
        if number
    }
    assert {pair[0] for pair in cited} > {"docs/promises.md"}
    assert not {pair for pair in cited if pair[1] not in promises}


def test_every_promise_names_tests_and_decisions_that_exist() -> None:
    sections = re.split(r"^## ", text_of("docs/promises.md"), flags=re.MULTILINE)[1:]
    for section in sections:
        tests = re.findall(r"`((?:tests|bench)/[^`]+)`", section)
        assert tests, section
        assert not [path for path in tests if not (ROOT / path).exists()], section
        assert re.search(r"^- Decisions: ADR [\d, ]+\.$", section, flags=re.MULTILINE), section


def test_every_decision_has_a_date_a_status_and_a_row_in_the_index() -> None:
    pages = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    rows = []
    for page in pages:
        head = re.match(
            r"# (?P<number>\d+)\. (?P<title>.+)\n\nDate: (?P<date>\d{4}-\d\d-\d\d)\. Status: (?P<status>[^\n]+)\.\n\n",
            page.read_text(encoding="utf-8"),
        )
        assert head, f"{page.name}: no line 'Date: YYYY-MM-DD. Status: accepted.' below the title"
        rows.append(f"| [{head['number']}]({page.name}) | {head['title']} | {head['date']} | {head['status']} |")
    assert re.findall(r"^\| \[.*", text_of("docs/adr/README.md"), flags=re.MULTILINE) == rows


def test_every_status_is_known_and_names_a_later_decision() -> None:
    index = re.findall(r"^\| \[(\d+)\].* \| ([^|]+) \|$", text_of("docs/adr/README.md"), flags=re.MULTILINE)
    numbers = {int(number) for number, _ in index}
    wrong = [
        (number, status)
        for number, status in index
        if not re.fullmatch(r"accepted(; (extended|superseded|superseded in part) by ADR \d+(, \d+)*)*", status)
        or not all(int(number) < int(later) and int(later) in numbers for later in re.findall(r"\d+", status))
    ]
    assert index
    assert not wrong


def test_a_decision_that_supersedes_another_is_in_its_status() -> None:
    for page in (ROOT / "docs/adr").glob("[0-9]*.md"):
        number = int(page.name[:4])
        for earlier in re.findall(r"[Tt]his supersedes (?:the part of )?ADR (\d+)", page.read_text(encoding="utf-8")):
            (superseded,) = (ROOT / "docs/adr").glob(f"{int(earlier):04}-*.md")
            status = superseded.read_text(encoding="utf-8").split("\n")[2]
            assert re.search(rf"superseded .*\b{number}\b", status), f"{superseded.name}: {status}"


def diagrams() -> list[str]:
    return re.findall(r"```mermaid\n(.*?)```", text_of("docs/architecture.md"), flags=re.DOTALL)


def imports_of(package: str) -> set[str]:
    folder = ROOT / "d5agent" / package
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return set(re.findall(r"from d5agent\.(\w+)", text)) | set(re.findall(r"from d5agent import (\w+)", text))


def test_the_diagram_of_packages_is_the_import_contract() -> None:
    contract = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    layers = [re.findall(r"d5agent\.(\w+)", layer) for layer in contract["layers"]]
    depth = {package: number for number, layer in enumerate(layers) for package in layer}
    (diagram,) = [each for each in diagrams() if each.startswith("flowchart TD")]
    arrows = re.findall(r"^ +(\w+)(?:\[.*?\])? --> (\w+)", diagram, flags=re.MULTILINE)
    assert {package for arrow in arrows for package in arrow} == depth.keys()
    assert not [(upper, lower) for upper, lower in arrows if depth[upper] >= depth[lower]]
    assert not [(upper, lower) for upper, lower in arrows if lower not in imports_of(upper)]


def test_each_part_of_the_diagram_of_data_has_its_modules() -> None:
    page = text_of("docs/architecture.md")
    (diagram,) = [each for each in diagrams() if each.startswith("flowchart LR")]
    agent = diagram.split("subgraph agent")[1].split("\n    end\n")[0]
    parts = {label.split(":")[0] for label in re.findall(r"\w+\[([^\]]+)\]", agent)} - {"the agent"}
    table = dict(re.findall(r"^\| (.+) \| (`.+) \|$", page, flags=re.MULTILINE))
    assert {part for row in table for part in row.split(", ")} == parts
    named = [module for modules in table.values() for module in re.findall(r"`([^`]+\.py)`", modules)]
    assert named
    assert not [module for module in named if not (ROOT / "d5agent" / module).exists()]


def test_every_arrow_of_a_diagram_joins_parts_that_are_drawn() -> None:
    for diagram in diagrams():
        drawn = set(re.findall(r"(\w+) ?\[", diagram))
        arrow = r"(\w+)(?:\[[^\]]*\])? -(?:->(?:\|[^|]+\|)?|\. .+ \.->) (\w+)"
        ends = {end for pair in re.findall(arrow, diagram) for end in pair}
        assert len(re.findall(arrow, diagram)) == len(re.findall(r"->", diagram))
        assert ends
        assert ends <= drawn


def test_glossary_is_sorted_and_leads_from_each_term_to_a_term() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text_of("docs/glossary.md"), flags=re.MULTILINE)[1:]
    terms = [term for term, _ in rows]
    assert terms == sorted(set(terms), key=str.lower)
    assert not [meaning for _, meaning in rows for other in re.findall(r"^see (.+)$", meaning) if other not in terms]


def test_glossary_has_every_service_and_phase() -> None:
    terms = set(re.findall(r"^\| ([^|]+) \| ", text_of("docs/glossary.md"), flags=re.MULTILINE))
    wanted = {*map(str, Service), *map(str, Phase), "certificate", "commit", "dead letter", "fence marker", "gap"}
    assert not wanted - terms


PLAIN: Final = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/configuration.md",
    "docs/failure-modes.md",
    "docs/formats.md",
    "docs/gateway.md",
    "docs/glossary.md",
    "docs/metrics.md",
    "docs/privileges.md",
    "docs/promises.md",
    "docs/runbook/README.md",
)


@pytest.mark.parametrize("name", PLAIN)
def test_page_avoids_words_that_read_as_translated(name: str) -> None:
    odd = r"\b(?:anew|for ever|mend(?:s|ed|ing)?|nought|stands?|standing|stood|tells?|telling|told)\b"
    prose = re.sub(r"```.*?```|`[^`]*`", lambda code: re.sub(r"[^\n]", " ", code[0]), text_of(name), flags=re.DOTALL)
    found = [
        f"{name}:{number}: {word}"
        for number, line in enumerate(prose.split("\n"), 1)
        for word in re.findall(odd, line, flags=re.IGNORECASE)
    ]
    assert not found
