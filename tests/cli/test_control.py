import json
from pathlib import Path

import pytest

from palinka.__main__ import main

SIZES = {"context_length": 32, "train_tokens": 2048, "validation_tokens": 1280, "batch_size": 256}


@pytest.mark.slow
def test_a_recipe_is_trained_on_a_control_once_and_given_beside_it(workspace: Path) -> None:
    line = [f"--data.{name}={size}" for name, size in SIZES.items()]
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
