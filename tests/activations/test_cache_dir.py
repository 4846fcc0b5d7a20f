from pathlib import Path

import pytest

from palinka.data import CacheKey, CacheWriter, Layout
from palinka.data.cache import default_cache_dir
from palinka.errors import InputError


def test_the_environment_or_the_home_folder_says_where_caches_lie(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PALINKA_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.setenv("HOME", "/home/someone")
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("PALINKA_CACHE")
        else:
            monkeypatch.setenv("PALINKA_CACHE", unset)
        assert default_cache_dir() == Path("/home/someone/.cache/palinka/activations")


def test_without_a_home_folder_the_answer_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PALINKA_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(InputError, match="set PALINKA_CACHE"):
        default_cache_dir()


def test_a_folder_that_cannot_be_made_is_named_with_what_to_set() -> None:
    layout = Layout(width=3, dtype="float32", context_length=8, blocks_per_shard=2)
    with pytest.raises(InputError, match=r"^/proc/nowhere/\w+: .* set PALINKA_CACHE"):
        CacheWriter(Path("/proc/nowhere"), CacheKey(layout, {"split": "train"}))
