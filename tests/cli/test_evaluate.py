import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from palinka.__main__ import main
from palinka.autoencoders import KSparseAutoencoder
from palinka.autoencoders.formats import Provenance
from palinka.cli.convert import write_checkpoint
from palinka.cli.evaluate import evaluate
from palinka.evaluation.probing import probing
from palinka.evaluation.selection import selection
from palinka.evaluation.stability import stability

pytestmark = pytest.mark.usefixtures("undrawn")
SIZES = {"context_length": 32, "train_tokens": 128, "validation_tokens": 640, "batch_size": 64}


def fit(variants: str) -> None:
    """A short sweep."""
    line = [f"--data.{name}={size}" for name, size in SIZES.items()]
    line += ["--model.autoencoder.latent_dim=20", "--model.autoencoder.k=3"]
    line += ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--quiet"]
    assert main(["fit", *line, "--seed_everything=7", f"--model.variants={variants}"]) == 0


@pytest.fixture
def fitted(workspace: Path) -> Path:
    """Its log folder."""
    fit("[{k: 3}, {k: 3, seed: 1}, {k: 5, seed: 1}, {k: 3, seed: 7}]")  # 7 is the first's
    return workspace / "lightning_logs" / "version_0"


def record(folder: Path) -> Any:
    return json.loads((folder / "evaluation" / "evaluation.json").read_text())


def test_a_run_a_checkpoint_and_two_that_are_compared(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "--metrics", "[core]", "--quiet"]
    assert main([*given, "--ckpt_path", "last", "--data.validation_tokens", "320"]) == 0
    whole = record(fitted)
    # The first variant has no seed of its own.
    assert [(d["name"], d["recipe"], d["seed"]) for d in whole["dictionaries"]] == [
        ("k=3,seed=7", "k=3", 7), ("k=3,seed=1", "k=3", 1), ("k=5,seed=1", "k=5,seed=1", 1),
    ]  # fmt: skip
    assert whole["settings"]["data"]["validation_tokens"] == 320
    assert whole == record(fitted / "analyses")
    assert {(c["a"], c["b"]) for c in whole["comparisons"]} == {("k=3", "k=5,seed=1")}
    out = capsys.readouterr().out
    assert "evaluation in   lightning_logs/version_0/evaluation" in out
    assert "whole report in   lightning_logs/version_0/evaluation/evaluation.md" in out
    assert "One seed of k=5,seed=1: this compares a recipe with a checkpoint." in out
    one, other = (
        str(fitted / name / "checkpoints" / "last.ckpt") for name in ("k=3", "k=5,seed=1")
    )
    assert main([*given, "--ckpt_path", one, "--against", other, "--output", "out"]) == 0
    pair = record(Path("out"))
    assert {(c["a"], c["b"]) for c in pair["comparisons"]} == {("k=3", "k=5,seed=1")}
    fvu = next(c for c in pair["comparisons"] if c["metric"] == "fvu")
    assert fvu["remark"] == "One seed each: this compares two checkpoints, not two recipes."
    assert [d["seed"] for d in pair["dictionaries"]] == [7, 1]
    assert main([*given, "--ckpt_path", one, "--against", str(fitted), "--output", "all"]) == 2


def test_the_shuffled_null_is_trained_only_for_dictionaries_that_are_matched(
    workspace: Path, refused: Any
) -> None:
    fit("{k: [3, 5]}")
    given = ["evaluate", "--ckpt_path", "lightning_logs/version_0", "--metrics", "[stability]"]
    given += ["--stability.null", "shuffled", "--quiet"]
    fault = "stability.null shuffled takes no --against or --control; leave them out"
    assert fault in refused(*given, "--control", "permuted")
    assert main(given) == 0
    run = workspace / "lightning_logs" / "version_0"
    assert "one seed only" in record(run)["notes"][0]
    assert not [*run.glob("control_*")]


def test_an_imported_dictionary_and_what_cannot_be_evaluated(workspace: Path, refused: Any) -> None:
    torch.manual_seed(0)
    sites = {"here": ("blocks.2.mlp.pre", 512), "far": ("blocks.1.resid", 256)}
    for name, (site, width) in sites.items():
        provenance = Provenance(site=site)
        write_checkpoint(KSparseAutoencoder(width, 20, k=3), provenance, workspace / f"{name}.ckpt")
    data = [f"--data.{n} {v}" for n, v in SIZES.items()] + ["--data.site blocks.2.mlp.pre"]
    fitting = " ".join(["--ckpt_path here.ckpt", *data])
    for line, expected in (
        ("--ckpt_path last", "no complete checkpoint below lightning_logs; fit one first"),
        ("--ckpt_path here.ckpt", "trained with site blocks.2.mlp.pre"),
        (f"{fitting} --metrics [coer]", "metrics: there is no group 'coer' (did you mean 'core'?)"),
        (f"{fitting} --metrics core --tasks x.csv", "tasks: not an option of core; give --metrics"),
        (f"{fitting} --metrics [core] --stability.force true", "stability: not an option of core;"),
        (f"{fitting} --metrics [controls]", "no group 'controls'; give --control permuted"),
        (f"{fitting} --metrics [explain]", "no group 'explain'; see `palinka explain --help`"),
        (f"{fitting} --probing.protocol x", "probing.protocol is 'x'; expected 'palinka' or 'sae_"),
        (f"{fitting} --margin=-1", "margin is -1; give a size, 0 or above"),
        (f"{fitting} --control_ckpt_path x", "control_ckpt_path needs --control, the mode that"),
        (  # before anything is measured
            f"{fitting} --against far.ckpt --control permuted",
            "control permuted: the checkpoint was imported and its recipe is not known; give",
        ),
        (f"{fitting} --against here.ckpt", "against: here.ckpt is the checkpoint of --ckpt_path;"),
        (
            f"{fitting} --against far.ckpt",
            "against: far.ckpt reads blocks.1.resid of width 256, here.ckpt reads blocks.2.mlp.pre "
            "of width 512; compare dictionaries of one site",
        ),
    ):
        assert expected in refused("evaluate", *line.split())
    assert not (workspace / "analyses").exists()
    assert main(["evaluate", *fitting.split(), "--metrics", "[core]", "--quiet"]) == 0
    found = record(workspace / "analyses" / "here")
    assert [(d["name"], d["seed"]) for d in found["dictionaries"]] == [("here", None)]


def test_the_help_names_the_options_of_every_group() -> None:
    _, _, listed = str(evaluate.__doc__).partition("Args:")
    for name, group in (("probing", probing), ("stability", stability), ("selection", selection)):
        (text,) = re.findall(rf"\n        {name}: (.*?)(?=\n {{8}}\w|\Z)", listed, re.DOTALL)
        options = {*inspect.signature(group).parameters} - {"subject", "tasks"}
        assert options <= {*re.findall(r"`(\w+)`", text)}


CONTROLLED = {
    "context_length": 32,
    "train_tokens": 2048,
    "validation_tokens": 1280,
    "batch_size": 256,
}


@pytest.mark.slow
def test_a_recipe_is_trained_on_a_control_once_and_given_beside_it(workspace: Path) -> None:
    line = [f"--data.{name}={size}" for name, size in CONTROLLED.items()]
    line += ["--model.autoencoder.latent_dim=40", "--model.autoencoder.k=4", "--quiet"]
    line += ["--trainer.max_epochs=4", "--model.variants={seed: [0, 1, 2]}"]
    assert main(["fit", *line]) == 0
    run = workspace / "lightning_logs" / "version_0"
    given = ["evaluate", "--ckpt_path", str(run), "--metrics", "[core,stability]", "--quiet"]
    for _ in range(2):
        assert main([*given, "--control", "permuted"]) == 0
    assert [path.name for path in (run / "control_permuted").iterdir()] == ["version_0"]
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    values = {(v["metric"], v["of"]): v for v in found["values"]}
    gap = values["fvu_gap", "version_0"]
    assert gap["n"]["seeds"] == 3
    beside = values["fvu", "version_0 on the random model"]
    assert gap["value"] == pytest.approx(values["fvu", "version_0"]["value"] - beside["value"])
    assert ("stability_share_0.7_gap", "version_0") in values
    null = ["--stability.null", "shuffled", "--output", "apart"]
    assert main([*given, *null]) == 0
    assert [path.name for path in (run / "control_coordinates").iterdir()] == ["version_0"]
    found = json.loads((workspace / "apart" / "evaluation" / "evaluation.json").read_text())
    assert found["settings"]["stability"] == {"null": "shuffled"}
    one = run / "seed=1" / "checkpoints" / "last.ckpt"
    line = ["--ckpt_path", str(one), "--metrics", "[core]", "--output", "one", "--quiet"]
    assert main(["evaluate", *line, "--control", "permuted"]) == 0
    assert [path.name for path in (run / "control_permuted").iterdir()] == ["version_0"]
    found = json.loads((workspace / "one" / "evaluation" / "evaluation.json").read_text())
    assert "one control seed of seed=1: a gap needs at least 2" in found["notes"]
