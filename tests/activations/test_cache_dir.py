from pathlib import Path

import pytest

from palinka.activations.cache_dir import default_cache_dir


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
