"""Names of objects in the store: a segment's key says which operations it holds, and can be read back."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote

from bson import decode, encode
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps, loads

from d5agent.core.log import raw
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.log.raw import DocumentId
from d5agent.errors import CorruptDataError

SEGMENTS: Final = "replication/"
REPORTS: Final = "reports/"
LOG: Final = "replication/.log/"
DATABASE_LEVEL: Final = ".database"  # no collection name can begin with a dot
MIXED: Final = ".mixed"  # in the place of database and collection: a segment of several quiet collections
NO_DOCUMENT: Final = "~none"  # an event that names no document

_LONGEST: Final = 200  # characters of one part of a key; with all its parts a key stays under S3's 1,024 bytes
_KEPT: Final = 80  # of a shortened part, the beginning that stays readable
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]{0,9})")
_OBJECT_ID: Final = re.compile(r"[0-9a-f]{24}")
_RESERVED_WORDS: Final = frozenset({"", "null", "true", "false", "NaN", "Infinity"})
_CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS, tz_aware=False
)
_JSON: Final = CANONICAL_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)
_KEY: Final = re.compile(
    r"replication/((?P<database>[^/]+)/(?P<collection>[^/]+)|\.mixed)/(?P<seconds>\d{10})-(?P<increment>\d{10})"
    r"_(?P<document>[^/_]*)(_(?P<ordinal>[1-9]\d*))?\.bson(\.zst)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyParts:
    """What a segment's key tells. A shortened collection or document is `beginning~sha256` and cannot be undone.

    No namespace: the segment holds several.
    """

    namespace: Namespace | None
    first: ClusterTime
    document: str
    ordinal: int

    @property
    def document_id(self) -> DocumentId | None:
        """The `_id` in the key; None for a shortened one, or when the event named no document."""
        return None if "~" in self.document else text_to_id(unquote(self.document))


def _is_plain(text: str) -> bool:
    """Whether a string `_id` may stand as it is, because it cannot be taken for another kind of `_id`."""
    return not (text in _RESERVED_WORDS or text[0] in '{["' or _NUMBER.fullmatch(text) or _OBJECT_ID.fullmatch(text))


def id_to_text(id_: DocumentId) -> str:
    """Return an `_id` as text that `text_to_id` turns back into the same bytes.

    ObjectId: 24 hexadecimal digits. Int32: decimal digits. A string stands as it is unless it could be taken for
    something else, then as a JSON string. All others: canonical Extended JSON (version 2), or, where a decoder would
    change their bytes or refuse them, `{"$bson": "<base64>"}`.
    """
    if id_[0] == raw.OBJECT_ID:
        return id_[1:].hex()
    exact = '{"$bson":"' + base64.b64encode(id_).decode() + '"}'
    try:
        value = decode(raw.id_document(id_), _CODEC)["_id"]
        if id_[0] == raw.INT32:
            return str(value)
        if id_[0] == raw.STRING:
            return value if _is_plain(value) else json.dumps(value, ensure_ascii=False)
        text = dumps(value, json_options=_JSON, separators=(",", ":"), ensure_ascii=False)
        return text if text_to_id(text) == id_ else exact
    except Exception:  # noqa: BLE001 -- decoders refuse what a server stores in many ways, and a name never stops capture
        return exact


def text_to_id(text: str) -> DocumentId:
    """Return the `_id` that `id_to_text` wrote."""
    if _OBJECT_ID.fullmatch(text):
        return DocumentId(bytes((raw.OBJECT_ID,)) + bytes.fromhex(text))
    if text.startswith('{"$bson":'):
        return DocumentId(base64.b64decode(json.loads(text)["$bson"]))
    if text in _RESERVED_WORDS or text[0] in '{["' or _NUMBER.fullmatch(text):
        value = loads(text, json_options=_JSON)
    else:
        value = text
    return raw.document_id(encode({"_id": value}, codec_options=_CODEC))


def _part(text: str, *, escaped: str = "") -> str:
    """Percent-encode one part of a key; a long one keeps its beginning and gets its sha256 (`~` marks it)."""
    whole = quote(text, safe="", encoding="utf-8", errors="surrogateescape").replace("~", "%7E")
    for character in escaped:
        whole = whole.replace(character, f"%{ord(character):02X}")
    if len(whole) <= _LONGEST:
        return whole
    beginning = re.sub(r"%[0-9A-F]?$", "", whole[:_KEPT])
    return f"{beginning}~{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()}"


def segment_key(
    namespace: Namespace | None, first: ClusterTime, id_: DocumentId | None, *, ordinal: int = 1, suffix: str = ".bson"
) -> str:
    """Return the key of a segment: `replication/<database>/<collection>/<timestamp>_<documentId>.bson`.

    No namespace: it holds operations of several.
    """
    document = NO_DOCUMENT if id_ is None else _part(id_to_text(id_), escaped="_")
    ordinal_text = "" if ordinal == 1 else f"_{ordinal}"
    return f"{SEGMENTS}{_folder(namespace)}/{first}_{document}{ordinal_text}{suffix}"


def _folder(namespace: Namespace | None) -> str:
    if namespace is None:
        return MIXED
    collection = DATABASE_LEVEL if namespace.collection is None else _part(namespace.collection)
    return f"{_part(namespace.database)}/{collection}"


def parse_segment_key(key: str) -> KeyParts:
    """Return what a segment's key tells; CorruptDataError when it is none."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise CorruptDataError("not the key of a segment", key=key)
    return KeyParts(
        namespace=_namespace(match["database"], match["collection"]),
        first=ClusterTime(int(match["seconds"]), int(match["increment"])),
        document=match["document"],
        ordinal=int(match["ordinal"] or 1),
    )


def _namespace(database: str | None, collection: str) -> Namespace | None:
    if database is None:
        return None
    name = None if collection == DATABASE_LEVEL else unquote(collection, errors="surrogateescape")
    return Namespace(unquote(database, errors="surrogateescape"), name)


def names_in_keys(namespace: Namespace) -> Namespace | None:
    """Return a namespace as the keys of its segments tell it: a long name is shortened there."""
    return parse_segment_key(segment_key(namespace, ClusterTime(0, 0), None)).namespace


def commit_key(sequence: int) -> str:
    """Return the key of a commit: `replication/.log/<sequence, 12 digits>.json`."""
    return f"{LOG}{sequence:012d}.json"


def reports_folder(run_id: str) -> str:
    """Return where the reports of a run are, or those that belong to none."""
    return f"{REPORTS}{run_id or 'no-run'}/"
