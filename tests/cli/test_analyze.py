"""Every shipped analysis runs: on the bundled model, and in its reference set-up on a stand-in.

The models of the reference set-ups are on the hub; a small random model of the same family, with
as many blocks as the set-up needs, stands in for each.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from palinka.__main__ import main
from palinka.autoencoders import KSparseAutoencoder

CONFIGS = Path(__file__).parents[2] / "configs"
pytestmark = pytest.mark.usefixtures("undrawn")
FAST = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


LONG = (
    "punctuation", "geography", "grammar", "him_her_lesion", "he_she_patching", "he_she_steering",
    "he_she_subspaces", "lens",
)  # fmt: skip


def check(findings: Path) -> None:
    """Findings are complete, and say where they come from."""
    record = json.loads((findings / "findings.json").read_text())
    settings = {"language_model", "revision", "sites", "stimuli_hash", "options"}
    assert settings <= set(record["settings"])
    assert {"palinka", "time", "scalars"} <= set(record)
    assert np.load(findings / "arrays.npz").files
    pictures = {path.stem for path in findings.glob("*.png")}
    assert pictures
    assert pictures <= {path.stem for path in findings.glob("*.svg")}


def configs(folder: str, *slow: str) -> list[Any]:
    """Each file of a folder; the analyses themselves have tests of their own."""
    return [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in slow))
        for path in sorted((CONFIGS / folder).glob("*.yaml"))
        if path.stem != "passage"
    ]


@pytest.mark.parametrize("config", configs("analyses", *LONG))
def test_an_analysis_of_the_bundled_model(config: Path, workspace: Path) -> None:
    if "\nlanguage_model: mini\n" not in config.read_text():
        pytest.skip("of another model")
    assert main(["analyze", "--config", str(config), "--output=out"]) == 0
    assert [check(folder) for folder in (workspace / "out").iterdir()]


@pytest.mark.parametrize("config", configs("reference", "punctuation", "him_her", "words"))
def test_a_reference_set_up(config: Path, workspace: Path, models: Path) -> None:
    stand_in = models / ("gpt_neo" if config.stem == "grammar" else "gpt2")
    arguments = ["analyze", "--config", str(config), f"--language_model={stand_in}"]
    assert main([*arguments, "--output=out"]) == 0
    check(workspace / "out" / config.stem)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["passage.yaml", "reference/passage.yaml"])
def test_the_passage_ends_with_findings(config: str, workspace: Path, models: Path) -> None:
    gpt2 = models / "gpt2"
    options = [
        f"--data.language_model={gpt2}", "--trainer.max_epochs=3", "--data.context_length=256",
        "--model.autoencoder.latent_dim=96", "--model.autoencoder.k=20", *FAST,
    ]  # fmt: skip
    assert main(["fit", "--config", str(CONFIGS / config), *options]) == 0
    findings = workspace / "lightning_logs" / "version_0" / "analyses"
    assert {path.name for path in findings.iterdir()} == {"geography", "statistics", "training"}
    check(findings / "geography")
    check(findings / "statistics")
    record = json.loads((findings / "geography" / "findings.json").read_text())
    assert record["settings"]["units"] == "latents"
    checkpoint = workspace / "lightning_logs/version_0/checkpoints/last.ckpt"
    analyze = [
        "analyze", "--config", str(CONFIGS / "analyses/geography.yaml"), "--output=out",
        f"--language_model={gpt2}", f"--ckpt_path={checkpoint}",
    ]  # fmt: skip
    assert main(analyze) == 0
    # The same code on the same latents: whether after the fit or on its own.
    after = np.load(findings / "geography" / "arrays.npz")
    alone = np.load(workspace / "out" / "geography" / "arrays.npz")
    assert after.files == alone.files
    for name in after.files:
        np.testing.assert_array_equal(after[name], alone[name])


def test_an_analysis_that_fails_is_named_and_the_others_run(workspace: Path, refused: Any) -> None:
    stimuli = os.path.relpath(CONFIGS / "stimuli", workspace)
    entry = f"analysis: unit_tuning, stimuli: {stimuli}/verbs_nouns.yaml"
    (workspace / "two.yaml").write_text(
        "analyses:\n"
        f"  - {{name: first, {entry}, sites: blocks.77.mlp.pre}}\n"
        f"  - {{name: second, {entry}, options: {{test: welch}}}}\n"
    )
    line = refused("analyze", "--config", "two.yaml", "--output=out")
    assert line.startswith("first: ")
    assert [path.name for path in (workspace / "out").iterdir()] == ["second"]


@pytest.mark.parametrize(
    "wrong", ["analysis: unit_tunings", "analysis: unit_tuning, options: {tst: welch}"]
)
def test_a_misspelt_analysis_is_refused_before_any_runs(
    wrong: str, workspace: Path, refused: Any
) -> None:
    stimuli = f"stimuli: {CONFIGS}/stimuli/verbs_nouns.yaml"
    entries = f"[{{name: a, analysis: unit_tuning, {stimuli}}}, {{name: b, {wrong}, {stimuli}}}]"
    (workspace / "two.yaml").write_text(f"analyses: {entries}")
    init = f"{{class_path: RunAnalyses, init_args: {{analyses: {entries}}}}}"
    (workspace / "fit.yaml").write_text(f"trainer: {{callbacks: [{init}]}}")
    for command, config in (("analyze", "two.yaml"), ("fit", "fit.yaml")):
        assert "did you mean" in refused(command, "--config", config)
    assert sorted(path.name for path in workspace.iterdir()) == ["fit.yaml", "two.yaml"]


def test_a_fit_outlives_its_analyses_and_says_so(workspace: Path) -> None:
    entry = {"name": "a", "analysis": "unit_tuning", "stimuli": "run.yaml"}
    analyses = {"class_path": "RunAnalyses", "init_args": {"analyses": [entry]}}
    sizes = {"train_tokens": 256, "validation_tokens": 256, "batch_size": 256}
    content = {"data": sizes, "trainer": {"max_steps": 1, "callbacks": [analyses]}}
    (workspace / "run.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config=run.yaml", "--trainer.log_every_n_steps=1", *FAST]) == 1
    folder = workspace / "lightning_logs" / "version_0"
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert [path.name for path in (folder / "analyses").iterdir()] == ["training"]


ENDS = ["stayed at home because", "sang an old song when", "knew the road, so", "slept, although",
        "opened the letter, and", "lived in a village until"]  # fmt: skip
RESID = {"intervention": {"components": ["resid"], "positions": ["subject"]}}
SELECTED = {"selection": {"analysis": "first", "k": 3}}
MLP = {"sites": "blocks.3.mlp.post"}
# What an entry is given, what its stimuli are, the autoencoder, and the error.
IMPOSSIBLE: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "lengths": (
        {"intervention": {"positions": "all"}}, {}, "",
        "positions: all, but templates have 5 and 6 and 7 tokens; give roles: subject, end",
    ),
    "head": (
        {"sites": "blocks.3.attn.z.12", "intervention": {"components": ["neurons"], "units": [0]}},
        {}, "", "head 12 of block 3; the model has heads 0 to 3",
    ),
    "k": (
        {**MLP, "analysis": "lesion", "intervention": {"units": [*range(300)]}}, {}, "",
        "lesion: k 300 of 512 units; at most 256 leave matched controls: select fewer",
    ),
    "unit": (
        {**MLP, "analysis": "lesion", "intervention": {"units": [-1, 512]}}, {}, "",
        "blocks.3.mlp.post has units 0 to 511, and -1, 512 are given",
    ),
    "earlier": (
        {"intervention": {"components": ["neurons"], "selection": {"analysis": "none"}}}, {}, "",
        "the analysis 'none' has no findings yet; list it first",
    ),
    "same prompts": (
        {"analysis": "lesion", "intervention": SELECTED}, {}, "",
        "lesion: 3 units are to be chosen on the prompts they are tested on; give 'first' other",
    ),
    "reference": (
        {"analysis": "ablation", "intervention": {"components": ["mlp.out"], "value": "mean",
                                                  "reference": "template"}},
        {"slots": {"a": ["king"], "b": ["queen"], "he": ["he"], "she": ["she"]}}, "",
        "mean over a reference of 1 prompt; give at least 2",
    ),
    "unsolved": (
        RESID, {"answer": "{she}", "wrong": "{he}"}, "",
        "the model answers 0% of the pairs (clean above 0, corrupted below); set only: all",
    ),
    "templates": (
        RESID, {"ends": ENDS[:4]}, "",
        "4 templates; a test over templates needs at least 6: add templates, or set clusters_by",
    ),
    "idle": (
        {"intervention": {"components": ["latents"], "units": [9]}}, {}, "idle",
        "interventions on latents of blocks.3.mlp.pre changed nothing in 12 of 12 prompts; choose",
    ),
    "no latents": (
        {"intervention": {"components": ["latents"], "units": [3]}}, {}, "",
        "latents of blocks.3.mlp.pre need an autoencoder; give ckpt_path or autoencoder",
    ),
    "neurons": (
        {"intervention": {"components": ["neurons"], **SELECTED}}, {}, "idle",
        "the selection is of latents; give latents in place of neurons",
    ),
    "width": (
        {"sites": "blocks.3.resid", "intervention": {"components": ["latents"]}}, {}, "idle",
        "the autoencoder takes activations of width 512, and blocks.3.resid of mini is 128 wide",
    ),
    "transcoder": (
        {"analysis": "lesion", "intervention": {"units": [3]}}, {}, "transcoder",
        "the autoencoder of blocks.3.mlp.pre is a transcoder, which writes at another site",
    ),
    "sites": (
        {"sites": "blocks.*.mlp.post", "analysis": "attribution_patching",
         "intervention": {"components": ["neurons"]}},
        {}, "", "6 sites and 0 units are given for neurons; give one site, and units",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_intervention_is_refused_in_one_line(
    case: str, workspace: Path, refused: Any
) -> None:
    entry, changes, autoencoder, message = IMPOSSIBLE[case]
    paired = {
        "kind": "paired", "fill": "zip", "answer": "{he}", "wrong": "{she}",
        "slots": {"a": ["king", "queen"], "b": ["queen", "king"],
                  "he": ["he", "she"], "she": ["she", "he"]},
        "templates": {
            end.split()[-1]: {side: f"The {{{slot}:subject}} {end}"
                              for side, slot in (("clean", "a"), ("corrupted", "b"))}
            for end in changes.get("ends", ENDS)
        },
        **{key: value for key, value in changes.items() if key != "ends"},
    }  # fmt: skip
    (workspace / "paired.yaml").write_text(yaml.safe_dump(paired))
    first = {"name": "first", "analysis": "unit_tuning", "stimuli": "paired.yaml"}
    second = {"name": "second", "analysis": "activation_patching", "stimuli": "paired.yaml"}
    needs = "first" in str(entry["intervention"])
    entries = [*[first] * needs, second | entry]
    (workspace / "run.yaml").write_text(yaml.safe_dump({"analyses": entries}))
    arguments = ["analyze", "--config=run.yaml", "--output=out"]
    if autoencoder:
        transcoder: dict[str, Any] = {"output_dim": 512, "tied": False}
        more = transcoder if autoencoder == "transcoder" else {}
        made = KSparseAutoencoder(512, 32, k=4, encoder_bias=True, **more)
        with torch.no_grad():  # the first latents are active everywhere, and no others
            made.encoder.bias[:4] = 1e4
        made.save_pretrained(workspace / "autoencoder")
        arguments.append("--autoencoder=autoencoder")
    assert refused(*arguments).startswith(f"second: {message}")
    assert [path.name for path in (workspace / "out").glob("*")] == ["first"] * needs
