"""LocalStack's S3 with puts that are atomic, as Amazon's are; run by the Python of its own virtual environment.

LocalStack 4.7.0 empties the old object before it has read the new one: where the client goes away in between, the key
answers with the old length and no content, for ever.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from localstack.runtime.main import main  # type: ignore[import-not-found]
from localstack.services.s3.storage.ephemeral import EphemeralS3StoredObject  # type: ignore[import-not-found]

_write = EphemeralS3StoredObject.write


def _write_what_was_read(self: Any, stream: Any) -> int:  # noqa: ANN401 -- its types are not installed here
    return int(_write(self, None if stream is None else BytesIO(stream.read())))


EphemeralS3StoredObject.write = _write_what_was_read

if __name__ == "__main__":
    main()
