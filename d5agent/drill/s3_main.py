"""LocalStack's S3 with two faults mended that Amazon's has not; run by the Python of its own virtual environment.

LocalStack 4.7.0 empties the old object before it has read the new one: where the client goes away in between, the key
answers with the old length and no content, for ever. And where a listing is asked for with URL encoding, as boto does,
it compares encoded keys with the key, not encoded, that the next page begins at: a key with a `%` in it is left out.
"""

from __future__ import annotations

from functools import wraps
from io import BytesIO
from typing import Any
from urllib.parse import quote

from localstack.runtime.main import main  # type: ignore[import-not-found]
from localstack.services.s3.provider import S3Provider  # type: ignore[import-not-found]
from localstack.services.s3.storage.ephemeral import EphemeralS3StoredObject  # type: ignore[import-not-found]

_write = EphemeralS3StoredObject.write


def _write_what_was_read(self: Any, stream: Any) -> int:  # noqa: ANN401 -- its types are not installed here
    return int(_write(self, None if stream is None else BytesIO(stream.read())))


EphemeralS3StoredObject.write = _write_what_was_read

_list = S3Provider.list_objects_v2


@wraps(_list)
def _list_then_encode(*args: Any, encoding_type: str | None = None, **asked: Any) -> Any:  # noqa: ANN401 -- the same
    answer = _list(*args, **asked)
    if encoding_type:
        answer["EncodingType"] = encoding_type
        for part in (answer, *answer.get("Contents", ()), *answer.get("CommonPrefixes", ())):
            for name in {"Key", "Prefix", "Delimiter", "StartAfter"} & part.keys():
                part[name] = quote(part[name])
    return answer


S3Provider.list_objects_v2 = _list_then_encode

if __name__ == "__main__":
    main()
