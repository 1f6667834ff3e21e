"""A comparison as one page: the certificate of a restore, or the report of `d5agent verify`.

It stands alone: no script, no image, no font from elsewhere. Whatever comes from a database is escaped.
"""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.operation import ClusterTime
from d5agent.core.reports.charts import bars, clock, curve, duration, number, rates
from d5agent.core.reports.page_style import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_EXPLAINED: Final = {
    "touched": "Each document that an operation in the log touched, looked up by its _id on both sides; whole those "
    "collections that were dropped or renamed. Documents are compared byte for byte: values, types and the order of "
    "fields.",
    "full": "All collections of both sides, each document. Documents are compared byte for byte: values, types and the "
    "order of fields.",
}
_ABOUT_REPAIRS: Final = (
    "After the replay these documents were not what the source has. Each was written again from the source and "
    "compared again. The cause says which event of the log explains it."
)
_ABOUT_FACTS: Final = (
    "They do not make the databases unequal: the copy into DocumentDB carries no secondary indexes. Decide on each "
    "before the applications return."
)
_OUTSIDE_STATES: Final = {
    "complete": "Each document that the log does not touch was compared as well.",
    "unfinished": "The comparison of the documents that the log does not touch had not ended when this certificate was "
    "issued: it does not cover them. Clean ends the comparison before it deletes anything.",
    "off": "The documents that the log does not touch were not compared: [verify] outside is off.",
}
_ABOUT_OUTSIDE: Final = (
    "What differs here, the change stream did not report, or DMS had not delivered to DocumentDB. Nothing was "
    "repaired. Documents that are missing or different in the target must be accepted by an operator before clean."
)
_LEAST_POINTS: Final = 2
_MOST_MOVED: Final = 20
_MOST_ROWS: Final = 1000
_NUMERIC: Final = frozenset({"compared", "different", "repaired", "seconds"})


def page_of(document: Mapping[str, Any]) -> str:
    """Return the page of a certificate, or of a report: `kind`, `run_id`, `issued_at` and `result`."""
    result = document["result"]
    title = "Certificate of equality" if document["kind"] == "certificate" else "Comparison of source and target"
    sections = [
        _header(document, title),
        _facts(document),
        _namespaces(result),
        _differences(result),
        _repairs(result),
        _outside(document.get("outside")),
        _list("Indexes and options that differ", _ABOUT_FACTS, result["indexes"]),
        _timeline(document.get("timeline")),
        _check(document),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} {escape(document['run_id'])}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _header(document: Mapping[str, Any], title: str) -> str:
    result = document["result"]
    is_equal = result["equal"]
    verdict = "Both databases are equal" if is_equal else "The databases are not equal"
    compared = f"{result['compared']:,} documents of the source (DocumentDB) and the target (MongoDB)"
    if is_equal:
        said = f"{compared} were compared, and no difference is left."
    else:
        counts = f", and {len(result['counts'])} collections differ in number" if result["counts"] else ""
        said = f"{compared} were compared: {result['different']:,} differ{counts}."
    log = document.get("log")
    if log is not None:
        said += (
            f" Before that, all {log['operations']:,} operations of the log, recorded while MongoDB was away, "
            "were replayed into it."
        )
    said += _lost(document.get("outside"))
    return (
        f'<header class="{"good" if is_equal else "bad"}"><p class="kind">{escape(title)}</p><h1>{verdict}</h1>'
        f"<p>{said}</p></header>"
    )


def _lost(outside: Mapping[str, Any] | None) -> str:
    """Return a warning in the first lines: who reads no further must not take all for equal."""
    if outside is None or outside["state"] == "off":
        return ""
    lost = outside["missing"] + outside["different"]
    if lost or outside["is_cut"]:
        return f" {lost:,} documents that the log does not touch are missing or different in the target: see below."
    return "" if outside["state"] == "complete" else " Documents that the log does not touch are still being compared."


def _facts(document: Mapping[str, Any]) -> str:
    result, by, log = document["result"], document.get("issued_by"), document.get("log")
    facts = [("Issued", document["issued_at"]), ("Run", document["run_id"] or "none")]
    if by is not None:
        facts.append(("Issued by", f"d5agent {by['version']} on {by['host']}"))
    facts += [
        ("Documents compared", f"{result['compared']:,}"),
        ("Different", f"{result['different']:,}"),
        ("Repaired on the way", f"{result['repairs']:,}"),
        ("Comparing took", duration(result["seconds"])),
    ]
    if result.get("expired"):
        gone = ", ".join(f"{name}: {count:,}" for name, count in result["expired"].items())
        facts.append(("Expired on the source meanwhile", f"{gone}; the target still holds these documents"))
    if log is not None:
        facts.append(("Operations in the log", f"{log['operations']:,}"))
        end = document["end_of_stream"]
        said = f"proved by the marker {end['marker']}, stored in {end['commit']}"
        facts.append(("End of the stream", f"{said}; operations after it: {end['operations_after']:,}"))
        if end.get("kept_since") is not None:  # missing in an earlier version
            since = ClusterTime(*end["kept_since"])
            facts.append(("Stream", f"proved without a gap from {since} on; an earlier version began the log"))
        facts += _hold(document.get("target_hold"))
        facts += _overwritten(document.get("overwritten"))
        facts += _undelivered(document.get("undelivered"))
        facts += _specifications(result.get("specifications"))
        began = datetime.fromisoformat(document["read_only_since"])
        window = (datetime.fromisoformat(document["issued_at"]) - began).total_seconds()
        facts.append(("Read-only window", f"{duration(window)}, from {document['read_only_since']}"))
    facts += _evidence(document)
    rows = (f'<div><dt>{escape(name)}</dt><dd class="small">{escape(value)}</dd></div>' for name, value in facts)
    return f"<dl>{''.join(rows)}</dl>"


def _evidence(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return which clusters were compared, and when; certificates of the first version do not say."""
    servers, comparison = document.get("servers"), document.get("comparison")
    if servers is None or comparison is None:
        return []
    facts = [(side.capitalize(), _server(servers[side])) for side in ("source", "target")]
    parts = comparison["parts"]
    facts.append(("Compared", f"from {parts[0]['began_at']} to {parts[-1]['ended_at']}, in {len(parts)} parts"))
    if comparison["unchanged_at"]:
        said = f"watched from {comparison['watched_since']} to {comparison['unchanged_at']}"
        facts.append(("Target since then", f"{said}; what was written there was compared again"))
    else:
        said = f"not watched ({comparison['why_not_watched']}); everything was compared after the end of the stream"
        facts.append(("Target since then", said))
    return facts


def _server(facts: Mapping[str, Any]) -> str:
    id_ = f", cluster {facts['cluster_id']}" if facts["cluster_id"] else ""
    return f"set {facts['set_name']}{id_}, version {facts['version']}: {', '.join(facts['hosts'])}"


def _hold(hold: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what is said of others' writes to the target; an older certificate does not tell."""
    if hold is None:
        return []
    said = f"write-block mode: {hold['write_block']}, since {hold['since']}"
    if hold["was_open"]:
        said += "; others could write to the target while restore was at work"
    facts = [("Others' writes to the target", f"{said}: {hold['obstacle']}" if hold["obstacle"] else said)]
    held = [f"{row['namespace']} {row['index']} ({row['seconds']:g} s)" for row in hold["ttl_held"]]
    return [*facts, ("TTL indexes held", ", ".join(held))] if held else facts


def _overwritten(kept: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return where what restore has overwritten can be read again; an older certificate does not tell."""
    if kept is None:
        return []
    said = f"in the dump {kept['dump']}; what was written to the target later, in {kept['key']}: "
    said += f"{kept['documents']:,} documents, and {kept['deleted']:,} that somebody deleted"
    if kept["moved"]:
        said += f"; somebody dropped or renamed {', '.join(kept['moved'][:_MOST_MOVED])}"
    said += "" if kept["state"] == "complete" else f". Whether that is all is not known: {kept['why']}"
    return [("Overwritten documents of the target", said)]


def _undelivered(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what is known of writes in the target that DMS had not delivered; an older certificate does not tell."""
    if found is None:
        return []
    said = f"{found['state']}: no document was looked at before restore wrote"
    if found["sequence"] is not None:
        said = f"{found['documents']:,} documents named in {found['report']}; the look is {found['state']}"
    if found["operations_since"]:
        said += (
            f"; documents that one of the {found['operations_since']:,} later operations (markers included) touched"
            " first were not looked at"
        )
    return [("Undelivered writes that restore has overwritten", said)]


def _specifications(recorded: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what became of the indexes and options that a drop takes; an older certificate does not tell."""
    if recorded is None:
        return []
    built = recorded["built_again"]
    more = f" and {len(built) - _MOST_MOVED:,} more" if len(built) > _MOST_MOVED else ""
    said = f"built again on {', '.join(built[:_MOST_MOVED])}{more}" if built else "none had to be built again"
    if not recorded["kept"]:
        said = "not built again where a drop or a rename took them: [restore] keep_indexes is false"
    return [("Indexes and options of the target", f"recorded before the restore in {recorded['key']}; {said}")]


def _namespaces(result: Mapping[str, Any]) -> str:
    rows = [
        {"collection": name, **{column: f"{value:,}" for column, value in tally.items()}}
        for name, tally in result["namespaces"].items()
    ]
    return _section("What was compared", _EXPLAINED[result["scope"]], _table(rows)) + _list(
        "Numbers of documents that differ", "", result["counts"]
    )


def _differences(result: Mapping[str, Any]) -> str:
    if not result["different"]:
        return ""
    rows = [
        {
            "collection": row["namespace"],
            "_id": row["id"],
            "difference": row["kind"],
            "fields": ", ".join(row["fields"]),
        }
        for row in result["differences"]
    ]
    more = result["different"] - len(rows)
    note = f"{more:,} more are counted and not named here." if more > 0 else "All of them are named."
    return _section("Differences", note, _table(rows))


def _repairs(result: Mapping[str, Any]) -> str:
    if not result["repairs"]:
        return ""
    rows = [
        {
            "collection": row["namespace"],
            "_id": row["id"],
            "was": " ".join([row["kind"], ", ".join(row["fields"])]).strip(),
            "cause": row["explanation"],
            "last event": _event(row["last_event"]),
        }
        for row in result["repaired"]
    ]
    more = result["repairs"] - len(rows)
    note = _ABOUT_REPAIRS + (f" {more:,} more are counted and not named here." if more > 0 else "")
    return _section("Repairs", note, _table(rows))


def _outside(outside: Mapping[str, Any] | None) -> str:
    if outside is None:  # of a report, or of an agent that did not compare them
        return ""
    said = _OUTSIDE_STATES[outside["state"]]
    if outside["state"] == "off":
        return _section("What the log does not touch", said, "")
    counts = ("compared", "missing", "different", "extra")
    rows = [
        {"collections": f"{outside['collections_compared']:,} of {outside['collections']:,}"}
        | {name: f"{outside[name]:,}" for name in counts}
        | {"collections in the target only": f"{outside['extra_collections']:,}"}
    ]
    expired = outside.get("expired", 0)  # an earlier agent did not tell them apart
    said += f" {expired:,} more that the target lacks have expired by its own TTL indexes." if expired else ""
    first = [
        {"collection": row["namespace"], "_id": row["id"], "was": f"{row['kind']} {', '.join(row['fields'])}".strip()}
        for row in outside["first"]
    ]
    more = " In some collection more differ than are counted." if outside["is_cut"] else ""
    named = f'<p class="note">{escape(_ABOUT_OUTSIDE + more)} All are in {escape(outside["report"])}.</p>'
    return _section("What the log does not touch", said, _table(rows) + (named + _table(first) if first else ""))


def _event(event: Mapping[str, Any] | None) -> str:
    if event is None:
        return "none"
    without = "" if event["has_document"] else ", without its document"
    return f"{event['kind']} at {clock(event['cluster_time'][0])}{without}, in {event['commit']}"


def _timeline(timeline: Mapping[str, Any] | None) -> str:
    if timeline is None or not timeline["spans"]:
        return ""
    rows = [
        {"what": span["what"], "from": clock(span["began"]), "took": duration(span["seconds"])}
        for span in timeline["spans"]
    ]
    capture, restore = timeline["capture"]["points"], timeline["restore"]["points"]
    figures = [
        _curve("How far capture was behind the source", [(p[0], p[1]) for p in capture], "s"),
        _curve("Operations captured a second", rates(capture, 2), "/s"),
        _curve("Operations replayed a second", rates(restore, 1), "/s"),
        _curve("Documents compared a second", rates(restore, 2), "/s"),
    ]
    return _section(
        "What happened when", "All times are UTC.", bars(timeline["spans"]) + _table(rows) + "".join(figures)
    )


def _curve(caption: str, points: Sequence[tuple[float, float]], unit: str) -> str:
    if len(points) < _LEAST_POINTS or not any(value for _, value in points):
        return ""
    most = number(max(value for _, value in points))
    text = f"{escape(caption)} (at most {most} {escape(unit)})"
    return f"<figure><figcaption>{text}</figcaption>{curve(points, label=caption, unit=unit)}</figure>"


def _check(document: Mapping[str, Any]) -> str:
    log = document.get("log")
    if log is None:
        return "<footer>Made by d5agent verify. The same as JSON lies beside this page.</footer>"
    return _section(
        "How to check this certificate",
        "The log of operations is a chain: each commit holds the sha256 of the one before, so the sha256 of the last "
        "one stands for all of it. The certificate as JSON lies beside this page and carries a sha256 over itself.",
        "<ul>"
        f"<li>The last commit replayed and compared is <code>{escape(log['key'])}</code> "
        f"({log['operations']:,} operations in {log['segments']:,} segments).</li>"
        f"<li>Its sha256 must be <code>{escape(log['sha256'])}</code>.</li>"
        "<li><code>d5agent log verify</code> checks the chain; <code>d5agent verify</code> compares anew, and checks "
        "this certificate against the log.</li></ul>",
    )


def _list(title: str, note: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    shown = "".join(f"<li>{escape(line)}</li>" for line in lines[:_MOST_ROWS])
    more = f"<li>and {len(lines) - _MOST_ROWS:,} more</li>" if len(lines) > _MOST_ROWS else ""
    return _section(title, note, f"<ul>{shown}{more}</ul>")


def _section(title: str, note: str, body: str) -> str:
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{body}</section>"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return "<p>Nothing.</p>"
    heads = "".join(f"<th{_class(name)}>{escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{_cells(row.items())}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(values: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<td{_class(name)}>{escape(value)}</td>" for name, value in values)


def _class(name: str) -> str:
    return ' class="n"' if name in _NUMERIC else ""
