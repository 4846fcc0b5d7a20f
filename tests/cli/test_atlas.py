import json
from pathlib import Path
from typing import Any

import pytest
import torch

from palinka.__main__ import main
from palinka.atlas import AtlasServer
from palinka.autoencoders import KSparseAutoencoder
from palinka.autoencoders.formats import Provenance
from palinka.cli.convert import write_checkpoint


@pytest.fixture
def fitted(workspace: Path) -> Path:
    """The log folder of a short fit that has written its own atlas."""
    sizes = {"context_length": 32, "train_tokens": 128, "validation_tokens": 320, "batch_size": 64}
    line = [f"--data.{name}={size}" for name, size in sizes.items()]
    line += ["--model.autoencoder.latent_dim=20", "--model.autoencoder.k=3"]
    line += ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--quiet"]
    writer = ["--trainer.callbacks+=WriteAtlas", "--trainer.callbacks.options.contexts=2"]
    assert main(["fit", *line, *writer]) == 0
    return workspace / "lightning_logs" / "version_0"


def overview(atlas: Path) -> dict[str, Any]:
    text = (atlas / "data" / "overview.js").read_text()
    value: dict[str, Any] = json.loads(f"[{text[len('palinka.receive(') : -3]}]")[1]
    return value


def test_an_atlas_of_a_fit_and_one_of_its_checkpoint(
    fitted: Path, workspace: Path, capsys: pytest.CaptureFixture[str], parsed: list[str]
) -> None:
    of_fit = overview(fitted / "atlas")
    assert (of_fit["latents"], of_fit["site"], of_fit["rows"]) == (20, "blocks.3.mlp.pre", 320)
    folder = fitted / "analyses" / "found"
    folder.mkdir(parents=True)
    (folder / "findings.json").write_text('{"name": "found", "scalars": {"x": 1}, "notes": {}}')
    path = fitted / "checkpoints" / "last.ckpt"
    arguments = ["--ckpt_path", str(path), "--output", "atlas", "--options.contexts", "2"]
    arguments += ["--against", str(fitted)]
    assert main(["atlas", *arguments, "--data.validation_tokens", "160"]) == 0
    assert parsed == ["palinka atlas"]
    written = overview(workspace / "atlas")
    # The data as the fit had it, but for what the command line says.
    assert (written["rows"], written["latents"]) == (160, 20)
    labels = {metric["label"] for metric in written["metrics"]}
    assert "increase of the cross-entropy" in labels
    assert [analysis["name"] for analysis in written["analyses"]] == ["found"]
    assert written["against"] == "version_0/checkpoints/last.ckpt"
    assert "open it in a browser   atlas/index.html" in capsys.readouterr().out


def test_an_atlas_is_served_with_its_checkpoint(
    fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[dict[str, Any]] = []

    def ask(server: AtlasServer) -> None:
        answers.append(server.live.answer("Once upon a time"))
        raise KeyboardInterrupt

    monkeypatch.setattr(AtlasServer, "serve_forever", ask)
    assert main(["atlas", "serve", "--ckpt_path", "last", "--atlas", str(fitted / "atlas")]) == 0
    assert len(answers[0]["tokens"]) == 4
    assert answers[0]["active"]
    assert "the atlas is at   http://127.0.0.1:" in capsys.readouterr().out


def test_what_cannot_be_done_is_refused_in_a_line(workspace: Path, refused: Any) -> None:
    torch.manual_seed(0)
    provenance = Provenance(site="blocks.2.mlp.pre")
    write_checkpoint(KSparseAutoencoder(512, 20, k=3), provenance, workspace / "imported.ckpt")
    far = Provenance(site="blocks.1.mlp.pre")
    write_checkpoint(KSparseAutoencoder(512, 20, k=3), far, workspace / "far.ckpt")
    (workspace / "taken").mkdir()
    (workspace / "taken" / "thesis.txt").touch()
    known = "--ckpt_path imported.ckpt"
    fitting = f"{known} --data.site blocks.2.mlp.pre"
    for line, expected in (
        ("--ckpt_path last --output a", "no complete checkpoint below lightning_logs; fit"),
        ("--output a", "ckpt_path"),
        (f"{known} --output a", "trained with site blocks.2.mlp.pre"),
        (f"{fitting} --output taken", "is not an atlas; choose another"),
        (f"{known} --output a --against nowhere", "there is no checkpoint nowhere; give `last`"),
        (f"{fitting} --output a --against taken", "taken holds thesis.txt: expected config.json"),
        (f"{fitting} --output a --against far.ckpt", "far.ckpt has site blocks.1.mlp.pre, this"),
        (f"serve {fitting} --atlas taken", "is not an atlas"),
    ):
        assert expected in refused("atlas", *line.split())
    assert not (workspace / "a").exists()
