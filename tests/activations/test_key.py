from pathlib import Path

import pytest

from palinka.data.format import CacheKey, Layout
from palinka.errors import InputError

LAYOUT = Layout(width=3, dtype="float16", context_length=8, blocks_per_shard=2)


def test_digest_does_not_depend_on_the_order_of_settings() -> None:
    one = CacheKey(LAYOUT, {"a": 1, "b": [1, {"c": None, "d": 0.5}]})
    other = CacheKey(LAYOUT, {"b": [1, {"d": 0.5, "c": None}], "a": 1})
    assert one.digest == other.digest


def test_digest_never_changes() -> None:
    # Caches that are on disk are found by it.
    assert CacheKey(LAYOUT, {"model": "mini", "rows": 5}).digest == (
        "1e2dc5ca5c45962c69b5199800d1abcbd0c39c0a32e75ef64e05b43dc7f15f8f"
    )


def test_everything_counts() -> None:
    keys = [
        CacheKey(LAYOUT, {"a": 1}),
        CacheKey(LAYOUT, {"a": "1"}),
        CacheKey(LAYOUT, {"a": 1.5}),
        CacheKey(LAYOUT, {}),
        *(
            CacheKey(Layout(**{**LAYOUT.__dict__, **change}), {"a": 1})
            for change in (
                {"width": 4},
                {"dtype": "float32"},
                {"context_length": 9},
                {"blocks_per_shard": 3},
                {"skip": 1},
                {"seed": 1},
            )
        ),
    ]
    assert len({key.digest for key in keys}) == len(keys)


def test_folder_is_named_by_the_digest() -> None:
    key = CacheKey(LAYOUT, {})
    assert key.folder(Path("root")) == Path("root") / key.digest[:16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float64"}, "'float64': use one of float16, bfloat16, float32"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"context_length": 0}, "context_length is 0"),
        ({"blocks_per_shard": 0}, "blocks_per_shard is 0"),
        ({"skip": 8}, r"skip is 8: it must be from 0 to context_length - 1 \(7\)"),
        ({"skip": -1}, "skip is -1"),
        ({"blocks_per_shard": 2**28}, "here 268435455 blocks"),
    ],
)
def test_impossible_layouts_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Layout(**{**LAYOUT.__dict__, **change})
