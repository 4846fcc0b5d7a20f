"""Harvests that are killed at any moment, alone, beside another, or on one of two devices."""

import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from palinka.data import Cache
from palinka.errors import InputError

# 16 shards for training and 4 for validation.
SHARDS, ROWS_PER_SHARD = 20, "64"
HARVEST = [
    "harvest", "--data.site=blocks.1.mlp.pre", "--data.context_length=16",
    "--data.train_tokens=1024", "--data.validation_tokens=256", "--data.language_model.name=mini",
    "--data.language_model.device=cpu", "--trainer.accelerator=cpu", "--data.cache_dir=caches",
]  # fmt: skip


class Harvests:
    """Starts harvests in folders, and knows what one leaves that is undisturbed."""

    def __init__(self, commands: Any, folder: Path) -> None:
        self.commands, self.folder = commands, folder
        process = self.start("whole")
        began = self.wait_until_it_writes("whole", process)
        while len(list(self.caches("whole").glob("*/manifest.json"))) < 2:
            time.sleep(0.001)
        self.seconds = time.perf_counter() - began
        self.end_well("whole", process)
        self.expected = self.content("whole")
        assert len(self.expected) == SHARDS + 2

    def caches(self, name: str) -> Path:
        return self.folder / name / "caches"

    def start(self, name: str) -> Any:
        return self.commands.start(self.folder / name, HARVEST, ROWS_PER_SHARD=ROWS_PER_SHARD)

    def end_well(self, name: str, *processes: Any) -> None:
        output = self.folder / name / "output.txt"
        assert not any(self.commands.ended(*processes)), output.read_text()

    def shards(self, name: str) -> int:
        return len(list(self.caches(name).glob("*/shard-*.safetensors")))

    def content(self, name: str) -> dict[str, bytes]:
        caches = self.caches(name)
        files = [path for path in sorted(caches.rglob("*")) if path.is_file()]
        return {str(path.relative_to(caches)): path.read_bytes() for path in files}

    def wait_until_it_writes(self, name: str, process: Any) -> float:
        """Wait for the process to write its first rows, long after its imports."""
        before = written(self.caches(name))
        while process.is_alive() and written(self.caches(name)) == before:
            time.sleep(0.001)
        return time.perf_counter()

    def check_whole_or_nothing(self, name: str) -> int:
        """No reader takes half a cache for a whole one; how many whole ones there are."""
        whole = 0
        for cache in self.caches(name).iterdir():
            if Cache.exists(cache):
                Cache.open(cache).verify()
                whole += 1
            else:
                with pytest.raises(InputError, match="no finished cache"):
                    Cache.open(cache)
        return whole


def written(caches: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every shard, and of every part of one that has bytes."""
    found = {}
    for path in caches.glob("*/shard-*.safetensors*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_size:
                found[path] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def harvests(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Harvests:
    return Harvests(commands, tmp_path_factory.mktemp("harvests"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_any_moment_and_started_again_the_cache_is_the_same(harvests: Harvests) -> None:
    moments = random.Random(3)
    kills = finished = started = 0
    while kills < 20 or finished == 0:
        name = f"killed-{finished}"
        process = harvests.start(name)
        started += 1
        assert started < 80
        harvests.wait_until_it_writes(name, process)
        if kills < 20:
            left = 1 - harvests.shards(name) / SHARDS
            time.sleep(harvests.seconds * left * moments.random())
            process.kill()
        if harvests.commands.ended(process) == [-signal.SIGKILL]:
            kills += harvests.check_whole_or_nothing(name) < 2
        else:
            harvests.end_well(name, process)
            assert harvests.content(name) == harvests.expected
            finished += 1


def test_one_of_two_harvests_at_once_is_killed(harvests: Harvests) -> None:
    one, other = harvests.start("both"), harvests.start("both")
    harvests.wait_until_it_writes("both", one)
    time.sleep(harvests.seconds * random.Random(1).uniform(0, 0.5))
    one.kill()
    harvests.end_well("both", other)
    one.join()
    assert harvests.check_whole_or_nothing("both") == 2
    # What the dead one may have left when all was done goes with the next command.
    if harvests.content("both") != harvests.expected:
        harvests.end_well("both", harvests.start("both"))
    assert harvests.content("both") == harvests.expected


@pytest.mark.slow
def test_a_device_is_killed_and_the_harvest_goes_on(harvests: Harvests) -> None:
    def start() -> list[Any]:
        line = [*HARVEST, "--trainer.devices=2", "--trainer.strategy=ddp"]
        folder = harvests.folder / "two"
        return harvests.commands.start_on(2, folder, line, ROWS_PER_SHARD=ROWS_PER_SHARD)

    first, second = start()
    harvests.wait_until_it_writes("two", first)
    second.kill()
    assert all(harvests.commands.ended(second, first))
    harvests.check_whole_or_nothing("two")
    harvests.end_well("two", *start())
    assert harvests.content("two") == harvests.expected
