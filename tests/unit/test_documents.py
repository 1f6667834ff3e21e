"""The documents and the program agree: keys, services, links, and the pages that hints name."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.main
from typer.testing import CliRunner

from d5agent import errors
from d5agent.cli import app
from d5agent.core.run.services import Phase, Service
from d5agent.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CURRENT = [page for page in PAGES if page.parent.name != "adr"]  # a decision stands as it was made
VERBS = typer.main.get_group(app).commands
SERVICES = {*map(str, Service), *map(str, Phase)} - {Phase.IDLE.value}
PLACES = {"NAME", "SERVICE", "SERVICE|PHASE", "{}"}  # what stands for a service in a document or a hint
TAKERS = {
    "--accept-late": {"monitor-restore"},
    "--discard-late": {"monitor-restore"},
    "--accept-differences": {"clean"},
    "--force": {"clean"},
    "--again": {"restore"},
    "--mode": {"restore"},
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


GONE_OR_OTHERS = {"mark_not_written", "noncurrent_version_expiration"}  # renamed (the changes say so); Terraform's


def texts_of(source: str) -> Iterator[str]:
    """Return the texts in a module, with `{}` for each value that is filled in."""
    tree = ast.parse(source)
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    for node in joined:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    parts = {id(part) for node in joined for part in node.values}
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in parts:
            yield each.value


def commands_of(text: str) -> Iterator[str]:
    """Return what a text says to type, the first line of each from `d5agent` on."""
    for found in re.finditer(r"(?<![\w/@])d5agent ([^`\n;,()<]+)", text):
        yield found[1]


def fault_of(command: str) -> str:
    """Return what is wrong with a command, or nothing. What follows the command's own words is prose."""
    words = re.sub(r"[\[\]\\]", "", command).split()
    verb = words.pop(0)
    known = VERBS[verb]
    if hasattr(known, "commands"):
        if not words:
            return ""  # the group itself
        names = words.pop(0)
        if not set(names.split("|")) <= known.commands.keys():
            return f"{verb} has no {names}"
        known = known.commands[names.split("|")[0]]
    name = ""
    if verb in {"start", "stop", "pause", "resume"}:
        name = words.pop(0).rstrip(".:") if words else ""
        if name not in SERVICES | PLACES:
            return f"{verb} what: {name!r}"
    flags = {option: getattr(each, "is_flag", False) for each in known.params for option in each.opts}
    return fault_of_options(flags, name, words)


def fault_of_options(flags: dict[str, bool], name: str, words: list[str]) -> str:
    """Return which of the options that follow the verb lacks, or nothing. `flags`: its own; true: it has no value."""
    while words and (words[0].startswith("--") or words[0].isupper()):
        word = words.pop(0).rstrip(".:")
        for option in word.split("|") if word.startswith("--") else ():
            if option not in flags or (name in SERVICES and name not in TAKERS.get(option, {name})):
                return f"no {option} {name}"
        takes_value = word.startswith("--") and not flags[word.split("|")[0]]
        del words[: int(takes_value)]
    return ""


@pytest.mark.parametrize(
    "command", ["start everything", "start restore --accept-late RUN", "stop --now", "log show", "verify --all"]
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert fault_of(command)


def test_every_command_that_a_document_or_a_hint_names_exists() -> None:
    texts = [(page, page.read_text(encoding="utf-8")) for page in CURRENT]
    spans = [(page, span) for page, text in texts for span in re.findall(r"`(d5agent [^`]+)`", text)]
    lines = [
        (page, line) for page, text in texts for line in re.findall(r"^ {4,}.*\bd5agent \w.*$", text, re.MULTILINE)
    ]
    program = [
        (path, text)
        for path in (ROOT / "d5agent").rglob("*.py")
        for text in texts_of(path.read_text(encoding="utf-8"))
        if "d5agent " in text
    ]
    named = [(path, each) for path, text in (*spans, *lines, *program) for each in commands_of(text)]
    is_typed = {id(path) for path, _ in (*spans, *lines)}
    wrong = [
        f"{path.relative_to(ROOT)}: d5agent {each}: {fault}"
        for path, each in named
        for verb in each.split()[:1]
        for fault in [fault_of(each) if verb in VERBS else "no such verb" if id(path) in is_typed else ""]
        if fault
    ]
    assert len(named) > 200
    assert not wrong, "\n".join(wrong)


def test_help_shows_names_of_settings() -> None:
    told = CliRunner().invoke(app, ["cutover", "--help"], env={"COLUMNS": "200"}).output
    assert "[cutover] command" in told


def test_every_event_and_field_that_a_document_names_is_in_the_program() -> None:
    program = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "d5agent").rglob("*.py"))
    others = {"CONTRIBUTING.md", "gateway.md", "performance.md", "testing.md"}  # these name parts of tests, too
    pages = [page for page in CURRENT if page.name not in others]
    unknown = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages
        for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page.read_text(encoding="utf-8"))
        if name not in program and not name.startswith("test_") and name not in GONE_OR_OTHERS
    ]
    assert not unknown


def test_every_setting_that_a_text_names_exists() -> None:
    keys = {(section, key) for section, field in Settings.model_fields.items() for key in field.annotation.model_fields}  # type: ignore[union-attr]  # each section is a model
    sections = {section for section, _ in keys}
    texts = [page.read_text(encoding="utf-8") for page in CURRENT]
    program = [text for path in (ROOT / "d5agent").rglob("*.py") for text in texts_of(path.read_text(encoding="utf-8"))]
    spans = [span for text in texts for span in re.findall(r"`([^`\n]+)`", text)]
    named = {pair for span in spans for pair in re.findall(r"^\[(\w+)\] (\w+)", span)}
    named |= {pair for text in program for pair in re.findall(r"\[(\w+)\] (\w+_\w+)", text)}
    assert not {pair for pair in named if pair[0] in sections} - keys
    assert not {pair for span in spans for pair in re.findall(r"^\[(\w+)\] \w+", span)} - sections


def test_every_decision_that_a_text_names_exists() -> None:
    numbers = {int(page.name[:4]) for page in (ROOT / "docs/adr").glob("[0-9]*.md")}
    paths = [*CURRENT, *(ROOT / "d5agent").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    named = {
        (path.relative_to(ROOT).as_posix(), int(number))
        for path in paths
        for listed in re.findall(r"\bADR ([\d, ]*\d)", path.read_text(encoding="utf-8"))
        for number in re.findall(r"\d+", listed)
    }
    assert not {pair for pair in named if pair[1] not in numbers}
    for page in (ROOT / "docs/adr").glob("[0-9]*.md"):
        assert page.read_text(encoding="utf-8").startswith(f"# {int(page.name[:4])}. "), page.name


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


def test_both_runbooks_name_the_same_things() -> None:
    """Commands, messages, events, settings and keys; only what explains them is translated."""
    english, spanish = (
        {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text_of(f"docs/runbook/README{end}.md"))}
        for end in ("", ".es")
    )
    assert english == spanish
    rows = [
        len(re.findall(r"^\| ", text_of(f"docs/runbook/README{end}.md"), flags=re.MULTILINE)) for end in ("", ".es")
    ]
    assert rows[0] == rows[1]


def shape_of(section: str) -> tuple[list[str], list[set[str]], list[str]]:
    """Return what no translation changes: steps and bullets, what each row names, commands."""
    marks = re.findall(r"^(?:\d+\.|-|#+)(?= )", section, flags=re.MULTILINE)
    rows = [set(re.findall(r"`([^`]+)`", row)) for row in re.findall(r"^\| .*", section, flags=re.MULTILINE)]
    commands = re.findall(r"^ {4,}\S.*[a-z]\(.*|^ {4,}(?:d5agent|set) .*", section, flags=re.MULTILINE)
    return marks, rows, commands


def test_both_runbooks_agree_section_by_section() -> None:
    english, spanish = (
        re.split(r"^(?=## )", text_of(f"docs/runbook/README{end}.md"), flags=re.MULTILINE) for end in ("", ".es")
    )
    assert len(english) == len(spanish)
    for ours, theirs in zip(english[1:], spanish[1:], strict=True):
        assert shape_of(ours) == shape_of(theirs), f"{ours.splitlines()[0]} / {theirs.splitlines()[0]}"
        spans = [{" ".join(span.split()) for span in re.findall(r"`([^`]+)`", each)} for each in (ours, theirs)]
        assert spans[0] == spans[1], f"{ours.splitlines()[0]}: {spans[0] ^ spans[1]}"
