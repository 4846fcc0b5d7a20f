import json
from pathlib import Path

import pytest
import yaml

from palinka.__main__ import main
from palinka.cli.resume import check_optimizer, ignored_settings, recorded_optimizer
from palinka.errors import InputError

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "betas": [0.9, 0.999]}}
SMALL = [
    "--data.train_tokens=2048",
    "--data.validation_tokens=1024",
    "--data.batch_size=256",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


def test_the_optimizer_of_a_run_is_read_from_its_record(tmp_path: Path) -> None:
    record = {"model": {"optimizer": ADAM, "lr_scheduler": None, "sparsity_weight": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    assert recorded_optimizer(tmp_path) == {"optimizer": ADAM, "lr_scheduler": None}


@pytest.mark.parametrize("text", [None, "{", "- 1", "model: 3", ""])
def test_a_record_that_says_nothing_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    assert recorded_optimizer(tmp_path) == {}


def test_another_optimizer_than_the_runs_is_refused() -> None:
    same = {"optimizer": {**ADAM, "init_args": {"lr": 0.001, "betas": (0.9, 0.999)}}}
    check_optimizer(same, {"optimizer": ADAM})
    other = {"optimizer": {**ADAM, "init_args": {"lr": 0.5, "betas": (0.9, 0.999)}}}
    with pytest.raises(InputError, match=r"model\.optimizer\.init_args\.lr is 0\.5.*with 0\.001"):
        check_optimizer(other, {"optimizer": ADAM})
    with pytest.raises(InputError, match=r"lr_scheduler\.class_path is None.*with x"):
        check_optimizer({"lr_scheduler": None}, {"lr_scheduler": {"class_path": "x"}})


def test_what_a_file_asks_in_vain_is_said(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {autoencoder: {class_path: KSparseAutoencoder, init_args: {k: 128}}, "
        "sparsity_weight: 1e-4, optimizer: {class_path: Adam}}"
    )
    autoencoder = {"class_path": "palinka.KSparseAutoencoder", "init_args": {"k": 64}}
    kept = {"autoencoder": autoencoder, "sparsity_weight": 0.0001, "optimizer": ADAM}
    (line,) = ignored_settings(["fit", "--config", str(file)], kept, kept)
    assert "k stays 64" in line
    assert "128" in line
    # The command line has won over both.
    holds = json.loads(json.dumps(kept))
    holds["autoencoder"]["init_args"]["k"] = 9
    assert list(ignored_settings(["fit", f"--config={file}"], kept, holds)) == []


def test_a_run_that_goes_on_says_what_it_does_not_take(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"autoencoder": {"class_path": "KSparseAutoencoder", "init_args": {"k": 8}}}
    file = workspace / "run.yaml"
    file.write_text(yaml.safe_dump({"model": settings}))
    line = ["fit", f"--config={file}", *SMALL]
    assert main([*line, "--trainer.max_epochs=1"]) == 0

    longer = [*line, "--trainer.max_epochs=2", "--ckpt_path=last"]
    capsys.readouterr()
    assert main([*longer, "--model.optimizer.lr=0.5"]) == 2
    assert "model.optimizer.init_args.lr is 0.5" in capsys.readouterr().err

    settings["autoencoder"]["init_args"]["k"] = 16
    file.write_text(yaml.safe_dump({"model": settings}))
    with pytest.warns(UserWarning, match="k stays 8, as the run began: the 16 of"):
        assert main(longer) == 0
    record = yaml.safe_load((workspace / "lightning_logs/version_0/config.yaml").read_text())
    assert record["model"]["autoencoder"]["init_args"]["k"] == 8
