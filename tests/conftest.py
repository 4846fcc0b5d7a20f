"""What every test may need: one thread per test, a folder of its own, the real data."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before torch is imported: the suite's many small operations do not gain from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests to `-m slow`, and say why real-data tests are skipped."""
    for item in items:
        if item.get_closest_marker("slow") and "slow" not in (config.option.markexpr or ""):
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
        if item.get_closest_marker("real_data") and not os.environ.get("PALINKA_DATA"):
            item.add_marker(pytest.mark.skip(reason="PALINKA_DATA names no folder of real data"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    return Path(os.environ["PALINKA_DATA"])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("PALINKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
