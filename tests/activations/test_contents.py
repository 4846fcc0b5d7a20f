import pytest

from palinka.data.format import is_leftover, is_part, is_temporary


@pytest.mark.parametrize(
    ("name", "part", "leftover", "temporary"),
    [
        ("manifest.json", True, False, False),
        ("shard-00000.safetensors", True, False, False),
        ("shard-123456.safetensors", True, False, False),
        ("harvest.json", True, True, False),
        ("shard-00000.json", True, True, False),
        ("shard-00000.safetensors.tmp", True, True, True),
        ("manifest.json.tmp", True, True, True),
        ("shard-0.safetensors", False, False, False),
        ("shard-00000.safetensors.bak", False, False, False),
        ("shard-00000.safetensors\n", False, False, False),
        ("shard-\u0660\u0660\u0660\u0660\u0660.json", False, False, False),
        ("notes.txt", False, False, False),
        ("notes.tmp", False, False, False),
        (".tmp", False, False, False),
        ("../manifest.json", False, False, False),
    ],
)
def test_what_belongs_to_a_cache(name: str, part: bool, leftover: bool, temporary: bool) -> None:
    assert (is_part(name), is_leftover(name), is_temporary(name)) == (part, leftover, temporary)
