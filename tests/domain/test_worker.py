"""A worker as it told the registry."""

import pytest

from maas_backoff.domain.worker import Worker


@pytest.mark.parametrize("text", [b"", b"nonsense", b"[]", b'"text"', b"7", b"\xff"])
def test_a_text_that_cannot_be_read_leaves_a_worker_of_that_name(text: bytes) -> None:
    """It has expired, is of another release, or was written over by hand. The worker is there all the same."""
    assert Worker.of("w", text) == Worker("w")
