"""Harvests that are killed at any moment, alone, beside another, or on one of two devices."""

import importlib.util
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

import palinka.cli.fit
from palinka.data import Cache
from palinka.errors import InputError

PROGRAM = Path(__file__).with_name("harvest_in_small_shards.py")
# 16 shards for training and 4 for validation.
SHARDS = 20
SMALL = [
    "--data.site=blocks.1.mlp.pre",
    "--data.context_length=16",
    "--data.train_tokens=1024",
    "--data.validation_tokens=256",
    "--data.language_model.name=mini",
    "--data.language_model.device=cpu",
    "--trainer.accelerator=cpu",
]


class Process(Protocol):
    """A process that runs a command."""

    def ended(self) -> bool: ...
    def kill(self) -> None: ...
    def status(self) -> int:
        """Wait for its end: the exit status, or minus the signal that ended it."""


class Forked:
    """A process of its own that begins with everything imported."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._run, args=(arguments, output))
        self._process.start()

    @staticmethod
    def _run(arguments: list[str], output: Path) -> None:
        assert palinka.cli.fit  # imported before, by the process that is forked
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        found = importlib.util.spec_from_file_location("small_shards", PROGRAM)
        assert found is not None
        assert found.loader is not None
        program = importlib.util.module_from_spec(found)
        found.loader.exec_module(program)
        sys.stdout = sys.stderr = open(output, "a")  # noqa: SIM115, PTH123
        os._exit(program.run(arguments))

    def ended(self) -> bool:
        return not self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def status(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


class Fresh:
    """A process that begins like one that a user starts."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        with output.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAM), *arguments], stdout=file, stderr=file
            )
        self.pid = self._process.pid

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()

    def status(self) -> int:
        return self._process.wait(timeout=300)


class Harvests:
    """Starts `palinka harvest` in processes of one kind, and knows what it leaves undisturbed."""

    def __init__(self, kind: type[Forked] | type[Fresh], folder: Path) -> None:
        self.kind = kind
        self._folder = folder
        process = self.start("whole")
        began = wait_until_it_writes(self.caches("whole"), process)
        while len(list(self.caches("whole").glob("*/manifest.json"))) < 2:
            time.sleep(0.001)
        self.seconds = time.perf_counter() - began
        self.end_well("whole", process)
        self.expected = content(self.caches("whole"))
        assert len(self.expected) == SHARDS + 2

    def caches(self, name: str) -> Path:
        return self._folder / name

    def start(self, name: str, *options: str) -> Process:
        arguments = ["harvest", *SMALL, f"--data.cache_dir={self.caches(name)}", *options]
        return self.kind(arguments, self._folder / f"{name}.txt")

    def end_well(self, name: str, process: Process) -> None:
        assert process.status() == 0, (self._folder / f"{name}.txt").read_text()

    def shards(self, name: str) -> int:
        return len(list(self.caches(name).glob("*/shard-*.safetensors")))


@pytest.fixture(
    scope="module", params=[Forked, pytest.param(Fresh, marks=pytest.mark.slow)], ids=["", "fresh"]
)
def harvests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Harvests:
    return Harvests(request.param, tmp_path_factory.mktemp("harvests"))


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_until_it_writes(caches: Path, process: Process) -> float:
    """Wait for the process to write its first rows, long after its imports."""
    before = written(caches)
    while not process.ended() and written(caches) == before:
        time.sleep(0.001)
    return time.perf_counter()


def written(caches: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every shard, and of every part of one that has bytes."""
    found = {}
    for path in caches.glob("*/shard-*.safetensors*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_size:
                found[path] = (status.st_size, status.st_mtime_ns)
    return found


def check_whole_or_nothing(folder: Path) -> int:
    """No reader takes half a cache for a whole one; how many whole ones there are."""
    whole = 0
    for cache in folder.iterdir():
        if Cache.exists(cache):
            Cache.open(cache).verify()
            whole += 1
        else:
            with pytest.raises(InputError, match="no finished cache"):
                Cache.open(cache)
    return whole


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_any_moment_and_started_again_the_cache_is_the_same(
    harvests: Harvests, request: pytest.FixtureRequest
) -> None:
    wanted = 20 if "fresh" in request.node.name else 3
    moments = random.Random(3)
    kills: list[int] = []
    started = finished = late = 0
    name = "killed-0"
    while len(kills) < wanted or finished < int(name[7:]) + 1:
        process = harvests.start(name)
        started += 1
        assert started < 4 * wanted
        wait_until_it_writes(harvests.caches(name), process)
        if len(kills) < wanted:
            left = 1 - harvests.shards(name) / SHARDS
            time.sleep(harvests.seconds * left * moments.random())
            process.kill()
        if process.status() == -signal.SIGKILL:
            if check_whole_or_nothing(harvests.caches(name)) < 2:
                kills.append(harvests.shards(name))
            else:
                late += 1
        else:
            harvests.end_well(name, process)
            assert content(harvests.caches(name)) == harvests.expected
            finished += 1
            if len(kills) < wanted:
                name = f"killed-{finished}"
    print(f"{len(kills)} kills amid a harvest, with so many of {SHARDS} shards written: {kills}")
    print(f"{late} kills after it; {finished} caches finished, all of the same bytes")


def test_one_of_two_harvests_at_once_is_killed(harvests: Harvests) -> None:
    one, other = harvests.start("both"), harvests.start("both")
    wait_until_it_writes(harvests.caches("both"), one)
    time.sleep(harvests.seconds * random.Random(1).uniform(0, 0.5))
    one.kill()
    print("killed" if one.status() == -signal.SIGKILL else "ended", harvests.shards("both"))
    harvests.end_well("both", other)
    assert check_whole_or_nothing(harvests.caches("both")) == 2
    # What the dead one may have left when all was done goes with the next command.
    if content(harvests.caches("both")) != harvests.expected:
        harvests.end_well("both", harvests.start("both"))
    assert content(harvests.caches("both")) == harvests.expected


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find a process")
def test_a_device_is_killed_and_the_harvest_goes_on(harvests: Harvests) -> None:
    if harvests.kind is not Fresh:
        pytest.skip("devices are started as fresh processes: run with -m slow")
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    process = harvests.start("two", *devices)
    assert isinstance(process, Fresh)
    wait_until_it_writes(harvests.caches("two"), process)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    assert process.status() != 0
    whole = check_whole_or_nothing(harvests.caches("two"))
    print(f"{whole} whole caches and {harvests.shards('two')} of {SHARDS} shards after the kill")
    harvests.end_well("two", harvests.start("two", *devices))
    assert content(harvests.caches("two")) == harvests.expected
