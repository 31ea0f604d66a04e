"""The beginning of a page of a listing."""

import pytest

from maas_backoff.domain.page import Listing

NAMES = ["ready", "gpu:1024:0", "gpu:4096:0", "scheduled"]


@pytest.mark.parametrize(
    ("cursor", "names", "expected"),
    [
        (None, NAMES, (0, "-inf", "0")),
        ("gpu:4096:0 12.5 3", NAMES, (2, "12.5", "3")),
        # The index is gone, as no task waits with that demand any more.
        ("gpu:2048:0 12.5 3", NAMES, (2, "-inf", "0")),
        ("ready 12.5 3", NAMES[1:], (0, "-inf", "0")),
        ("scheduled 12.5 3", NAMES[:3], (3, "-inf", "0")),
    ],
)
def test_a_cursor_whose_index_is_gone_goes_on_behind(
    cursor: str | None, names: list[str], expected: tuple[int, str, str]
) -> None:
    assert Listing(cursor=cursor).start(names) == expected
