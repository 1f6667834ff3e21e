"""Marks: documents that the agent writes to the source, to see them come out of the stream."""

from __future__ import annotations

import uuid
from typing import Final

from bson import encode

from d5agent.core.log.raw import DocumentId, document_id

_TEXT_AT: Final = 5  # in an `_id` that is a string: after its type and its length


def new_mark_id(purpose: str) -> str:
    """Return an `_id` for a mark that nobody else has."""
    return f"{purpose}-{uuid.uuid4()}"


def is_fence_marker(id_: DocumentId) -> bool:
    """Whether the `_id` of one of the agent's own documents is that of a fence marker."""
    return id_[_TEXT_AT:].startswith(b"fence-")


def mark_document_id(mark_id: str) -> DocumentId:
    """Return the `_id` of a mark as it stands in BSON."""
    return document_id(encode({"_id": mark_id}))
