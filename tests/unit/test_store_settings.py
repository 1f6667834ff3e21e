"""Where objects are, in an operator's words."""

from __future__ import annotations

import pytest

from d5agent.core.log.segmenter import OWN_SEGMENTS
from d5agent.settings import CaptureSettings, StoreSettings


@pytest.mark.parametrize(
    ("prefix", "url", "of_key"),
    [
        ("", "s3://bucket", "s3://bucket/reports/r.json"),
        ("prod/", "s3://bucket/prod", "s3://bucket/prod/reports/r.json"),
        ("/a/b", "s3://bucket/a/b", "s3://bucket/a/b/reports/r.json"),
    ],
)
def test_an_object_is_named_with_bucket_and_prefix(prefix: str, url: str, of_key: str) -> None:
    store = StoreSettings(bucket="bucket", prefix=prefix)
    assert (store.url, store.url_of("reports/r.json")) == (url, of_key)


def test_the_default_of_own_segments_is_the_segmenters() -> None:
    # Written twice: what reads the settings imports no driver (ADR 30), and the segmenter's module does.
    assert CaptureSettings().own_segments == OWN_SEGMENTS
