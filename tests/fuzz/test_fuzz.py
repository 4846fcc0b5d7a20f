"""Hostile files, a few of each kind; `run.py` goes on for as long as it is told to."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import pytest
from hostile.cache_targets import CacheFolder, HalfACache, ManifestFile
from hostile.config_targets import AnalyzeCommand, FitParser
from hostile.model_targets import ModelFolder
from hostile.stimuli_targets import StimuliFile, TextCorpus
from hostile.target import Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = {
    FitParser: 12,
    AnalyzeCommand: 12,
    StimuliFile: 60,
    ManifestFile: 150,
    CacheFolder: 60,
    HalfACache: 25,
    TextCorpus: 100,
    ModelFolder: 12,
}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.name)
def test_hostile_files_are_refused_in_one_line_or_mean_what_they_say(
    kind: type[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PALINKA_CACHE", raising=False)
    target = kind(tmp_path / "originals")
    outcomes = set()

    # The same cases in every run: to look for new ones is the runner's task.
    @settings(
        max_examples=EXAMPLES[kind],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def judged(seed: int) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as case:
            verdict = target.execute(Random(seed), Path(case))
        assert verdict.outcome != "finding", verdict.details
        outcomes.add(verdict.outcome)

    judged()
    assert "refused" in outcomes


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_runner(tmp_path: Path) -> None:
    minutes = os.environ.get("PALINKA_FUZZ_MINUTES", "1")
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--minutes", minutes]
    targets = [kind.name for kind in EXAMPLES]
    command += ["--findings", str(tmp_path), "--targets", *targets]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())
