"""Feed hostile files to everything that reads files, for a given time.

    python tests/fuzz/run.py --minutes 10 --seed 0
    python tests/fuzz/run.py --replay 0:stimuli:1234

Prints executions and findings, and leaves each first finding of a defect in a folder. A case
follows from its name alone: the seed, the target and a number.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("PALINKA_CACHE", None)

from hostile.cache_targets import CacheFolder, HalfACache, ManifestFile
from hostile.config_targets import AnalyzeCommand, FitCommand, FitParser
from hostile.import_targets import ForeignFolder
from hostile.model_targets import CheckpointFile, ModelFolder, PretrainedFolder
from hostile.oracle import SECONDS, Verdict
from hostile.stimuli_targets import StimuliFile, TextCorpus
from hostile.target import Target

TARGETS: tuple[type[Target], ...] = (
    FitParser, FitCommand, AnalyzeCommand, StimuliFile, ManifestFile, CacheFolder, HalfACache,
    CheckpointFile, PretrainedFolder, ForeignFolder, TextCorpus, ModelFolder,
)  # fmt: skip
SLICE = 15.0
PATIENCE = 8 * SECONDS


def execute(target: Target, seed: str, number: int, folder: Path) -> Verdict:
    """Execute one case in a new folder, which is removed afterwards."""
    case = folder / "case"
    case.mkdir()
    try:
        return target.execute(Random(f"{seed}:{target.name}:{number}"), case)
    finally:
        os.chdir(folder)
        shutil.rmtree(case)


def work(target: Target, seed: str, first: int, until: float, sender: Connection) -> None:
    """Execute cases one after the other, and send what came of each; the body of a child."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with tempfile.TemporaryDirectory() as folder:
        number = first
        while time.monotonic() < until:
            sender.send((number, None))
            sender.send((number, execute(target, seed, number, Path(folder))))
            number += 1
    sender.send(None)


class Campaign:
    """Counts and findings of all targets."""

    def __init__(self, seed: str, findings: Path) -> None:
        self.seed = seed
        self.findings = findings
        self.outcomes: dict[str, Counter[str]] = {}
        self.defects: dict[tuple[str, str], list[int]] = {}

    def slice(self, target: Target, seconds: float) -> None:
        """Let a child work on one target for some seconds, and survive its death."""
        outcomes = self.outcomes.setdefault(target.name, Counter())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            first = outcomes.total()
            receiver, sender = multiprocessing.Pipe(duplex=False)
            child = multiprocessing.Process(
                target=work, args=(target, self.seed, first, until, sender)
            )
            child.start()
            sender.close()
            self._listen(target, receiver, outcomes)
            child.kill()
            child.join()

    def _listen(self, target: Target, receiver: Connection, outcomes: Counter[str]) -> None:
        number, running = outcomes.total(), False
        while True:
            try:
                if not receiver.poll(PATIENCE):
                    self._count(target, number, Verdict("finding", "hangs for good"), outcomes)
                    return
                message = receiver.recv()
            except EOFError:
                if running:
                    verdict = Verdict("finding", "killed the process")
                    self._count(target, number, verdict, outcomes)
                return
            if message is None:
                return
            number, verdict = message
            running = verdict is None
            if verdict is not None:
                self._count(target, number, verdict, outcomes)

    def _count(self, target: Target, number: int, verdict: Verdict, outcomes: Counter[str]) -> None:
        outcomes[verdict.outcome] += 1
        if verdict.outcome != "finding":
            return
        key = (target.name, verdict.defect)
        self.defects.setdefault(key, []).append(number)
        if len(self.defects[key]) == 1:
            name = f"{self.seed}:{target.name}:{number}"
            print(f"{name}  {verdict.defect}", flush=True)
            folder = self.findings / name.replace(":", "-").replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "details.txt").write_text(f"{name}\n{verdict.defect}\n{verdict.details}\n")
            _keep(target, Random(name), folder)

    def report(self) -> str:
        """Executions and findings of each target, and the distinct defects."""
        lines = [f"{'target':<16}{'executions':>11}{'refused':>9}{'accepted':>9}{'findings':>9}"]
        total: Counter[str] = Counter()
        for name, outcomes in [*self.outcomes.items(), ("all", total)]:
            counts = (outcomes[kind] for kind in ("refused", "accepted", "finding"))
            lines.append(
                f"{name:<16}{outcomes.total():>11}" + "".join(f"{count:>9}" for count in counts)
            )
            total.update(outcomes)
        lines.append(f"distinct defects: {len(self.defects)}")
        for (name, defect), numbers in sorted(self.defects.items()):
            lines.append(f"  {name}: {defect} ({len(numbers)} times, first {numbers[0]})")
        return "\n".join(lines)


def _keep(target: Target, random: Random, folder: Path) -> None:
    """The files of a case, as they were before anything read them."""
    with tempfile.TemporaryDirectory() as temporary:
        inside = target.make(random, Path(temporary))
        for path in inside.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**24:
                shutil.copyfile(path, folder / path.name)


def main() -> int:
    """Run the command line; status 1 where there were findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--targets", nargs="*", choices=[target.name for target in TARGETS])
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "findings")
    parser.add_argument("--replay", help="SEED:TARGET:NUMBER, in this process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.replay:
            seed, name, number = options.replay.split(":")
            (kind,) = (kind for kind in TARGETS if kind.name == name)
            print(execute(kind(Path(temporary)), seed, int(number), Path(temporary)))
            return 0
        print(f"seed {options.seed}; findings go to {options.findings}", flush=True)
        chosen = [k for k in TARGETS if not options.targets or k.name in options.targets]
        targets = [kind(Path(temporary)) for kind in chosen]
        campaign = Campaign(options.seed, options.findings)
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            for target in targets:
                share = (end - time.monotonic()) / len(targets)
                campaign.slice(target, min(SLICE, max(share, 0.5)))
                if time.monotonic() >= end:
                    break
    print(campaign.report())
    return int(bool(campaign.defects))


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    sys.exit(main())
