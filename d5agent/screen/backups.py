"""Backups as a person sees them on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from d5agent.screen.terminal import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType


def backups_text(values: dict[str, Any]) -> RenderableType:
    """Return the backups of all runs, one a line, each whole: the run's id is for the next command."""
    return "\n".join(_backup_line(row) for row in values["backups"]) or "there is no backup"


def _backup_line(row: dict[str, Any]) -> str:
    what = "[yellow]not whole: no backup[/]"
    if row["is_stored"]:
        counts = f"{row['databases']:,} databases, {row['documents']:,} documents, {row['bytes']:,} bytes"
        what = f"{row['stored_at']}  {counts}"
    return f"{escaped(row['run_id'])}  {row['side']}  {what}"


def manifests_text(values: dict[str, Any]) -> RenderableType:
    """Return what a run's backup holds; each address stands whole on its line: it is for the next command."""
    return "\n".join(_manifest_text(manifest) for manifest in values["manifests"])


def _manifest_text(manifest: dict[str, Any]) -> str:
    seconds, increment = manifest["operation_time"]
    lines = [
        f"[bold]{manifest['side']}[/], run {manifest['run_id']}, stored at {manifest['stored_at']}",
        f"  holds all that was written before {seconds}-{increment}, and some of what came while it was dumped",
        f"  mongodump {manifest['mongodump']}, server {manifest['server']}",
        f"  not in it: {'; '.join(manifest['not_included'])}",
    ]
    for archive in manifest["archives"]:
        documents = archive["documents"]
        counts = f"{len(documents):,} collections, {sum(documents.values()):,} documents, {archive['bytes']:,} bytes"
        lines.append(f"  {escaped(archive['url'])}  {counts}")
        # Its patterns do not match a line break.
        lines += [
            f"    mongorestore leaves out {escaped(repr(name))}: load it alone, with --nsInclude and its name"
            for name in documents
            if "\n" in name
        ]
    return "\n".join(lines)


def archives_table(values: dict[str, Any]) -> RenderableType:
    """Return the result of checking a backup as a table."""
    verdict = "[green]whole[/]" if values["whole"] else "[bold red]not whole[/]"
    table = Table(title=f"{verdict}: the backup of run {escaped(values['run_id'])}", title_justify="left")
    for column in ("", "side", "database", "found"):
        table.add_column(column)
    for row in values["archives"]:
        mark = "[bold red]no[/]" if row["fault"] else "[green]ok[/]"
        found = row["fault"] or f"{row['bytes']:,} bytes, sha256 as in the manifest"
        table.add_row(mark, row["side"], escaped(row["database"]), escaped(found))
    return table
