"""Harvests that are killed at any moment, alone, beside another, or on one of two devices."""

import random
import signal
import time
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
        self.end_well("whole", self.start("whole"))
        self.expected = self.content("whole")
        assert len(self.expected) == SHARDS + 2

    def start(self, name: str) -> Any:
        return self.commands.start(self.folder / name, HARVEST, ROWS_PER_SHARD=ROWS_PER_SHARD)

    def end_well(self, name: str, process: Any) -> None:
        assert self.commands.ended(process) == [0], (self.folder / name / "output.txt").read_text()

    def content(self, name: str) -> dict[str, bytes]:
        caches = self.folder / name / "caches"
        files = [path for path in sorted(caches.rglob("*")) if path.is_file()]
        return {str(path.relative_to(caches)): path.read_bytes() for path in files}

    def kill(self, name: str, process: Any, moments: random.Random) -> None:
        """Kill a harvest somewhere within or after its next shards."""

        def shards() -> int:
            return len(list((self.folder / name / "caches").glob("*/shard-*.safetensors")))

        wanted = min(shards() + moments.randint(1, 6), SHARDS)
        while process.is_alive() and shards() < wanted:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()

    def whole(self, name: str) -> int:
        """The number of whole caches; no reader takes half of one for a whole one."""
        caches = list((self.folder / name / "caches").iterdir())
        for cache in caches:
            if Cache.exists(cache):
                Cache.open(cache).verify()
            else:
                with pytest.raises(InputError, match="no finished cache"):
                    Cache.open(cache)
        return sum(map(Cache.exists, caches))


@pytest.fixture(scope="module")
def harvests(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Harvests:
    return Harvests(commands, tmp_path_factory.mktemp("harvests"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_any_moment_and_started_again_the_cache_is_the_same(harvests: Harvests) -> None:
    moments = random.Random(3)
    kills = finished = 0
    while kills < 20 or finished == 0:
        name = f"killed-{finished}"
        process = harvests.start(name)
        if kills < 20:
            harvests.kill(name, process, moments)
        if harvests.commands.ended(process) == [-signal.SIGKILL]:
            kills += harvests.whole(name) < 2
        else:
            harvests.end_well(name, process)
            assert harvests.content(name) == harvests.expected
            finished += 1


def test_one_of_two_harvests_at_once_is_killed(harvests: Harvests) -> None:
    one, other = harvests.start("both"), harvests.start("both")
    harvests.kill("both", one, random.Random(1))
    harvests.end_well("both", other)
    one.join()
    assert harvests.whole("both") == 2
    # What the dead one may have left when all was done goes with the next command.
    if harvests.content("both") != harvests.expected:
        harvests.end_well("both", harvests.start("both"))
    assert harvests.content("both") == harvests.expected
