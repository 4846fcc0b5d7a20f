import random
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from palinka.autoencoders import KSparseAutoencoder
from palinka.data import ActivationDataModule, Passage
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks import AnalysisEntry, RunAnalyses, run_analyses

pytestmark = pytest.mark.usefixtures("undrawn")
TEXT = "The road from Vienna to Budapest follows the Danube, and Vienna is not far from it."


@pytest.fixture
def entry(tmp_path: Path) -> AnalysisEntry:
    path = tmp_path / "stimuli.yaml"
    categories = {"cities": ["Vienna", "Budapest"]}
    path.write_text(yaml.safe_dump({"kind": "passage", "text": TEXT, "categories": categories}))
    return AnalysisEntry("cities", "category_score", str(path))  # type: ignore[arg-type]


def fit(folder: Path, callback: RunAnalyses, module: SparseAutoencoderModule) -> None:
    data = ActivationDataModule(
        corpus=Passage(TEXT), in_memory=True, validation_fraction=0.0, batch_size=None
    )
    pl.Trainer(
        accelerator="cpu", max_epochs=5, log_every_n_steps=1, callbacks=[callback],
        logger=[TensorBoardLogger(folder, "tb"), CSVLogger(folder, "csv")], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, data)  # fmt: skip


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 5]), (5, [5])], ids=["two", "last"])
def test_analyses_run_when_asked_and_never_twice(
    every: int, expected: list[int], entry: AnalysisEntry,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    training: list[bool] = []
    run_analysis = run_analyses.run_analysis

    def watched(*given: Any) -> Any:
        training.append(module.training)
        return run_analysis(*given)

    monkeypatch.setattr(run_analyses, "run_analysis", watched)
    callback = RunAnalyses([entry], every_n_steps=every)
    module = SparseAutoencoderModule(KSparseAutoencoder(512, latent_dim=64, k=8))
    fit(tmp_path, callback, module)
    assert not callback.failed
    assert training == [False] * len(expected), "some architectures encode otherwise in training"
    events = EventAccumulator(str(tmp_path / "tb" / "version_0")).Reload()
    found = events.Scalars("analyses/cities/cities/best_score")
    assert [event.step for event in found] == expected
    findings = tmp_path / "tb" / "version_0" / "analyses"
    assert (findings / "cities" / "findings.json").exists()
    assert (findings / "training" / "losses.png").exists()
    (line,) = callback.headlines["cities"]
    assert line.startswith("cities/cities: best ")
    numbers = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert "analyses/cities/cities/best_score" in numbers.splitlines()[0]


class Undisturbed(RunAnalyses):
    """Runs the analyses, and compares with before all that a fit or its data depend on."""

    def at_step(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        lm = trainer.datamodule.loaded_language_model.model  # type: ignore[attr-defined]
        before = state_of(lm, module)
        super().at_step(trainer, module)
        assert state_of(lm, module) == before

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Nothing is left to disturb."""


def state_of(*modules: torch.nn.Module) -> list[Any]:
    tensors = [t for module in modules for t in module.state_dict().values()]
    parameters = [p for module in modules for p in module.parameters()]
    return [
        torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate(),  # noqa: NPY002
        torch.get_float32_matmul_precision(), torch.is_grad_enabled(), torch.get_num_threads(),
        [thread.name for thread in threading.enumerate()],
        modules[0].config._attn_implementation,
        [t.numpy().tobytes() for t in tensors],
        [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in parameters],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
         for module in modules for m in module.modules()],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [pytest.param("cities", marks=pytest.mark.slow), "latents"])
def test_an_analysis_never_changes_the_training(
    kind: str, entry: AnalysisEntry, latents_study: list[Any], tmp_path: Path
) -> None:
    entries = [entry] if kind == "cities" else [AnalysisEntry(**each) for each in latents_study]

    def weights(name: str, callback: RunAnalyses) -> dict[str, torch.Tensor]:
        pl.seed_everything(0)
        module = SparseAutoencoderModule(KSparseAutoencoder(512, latent_dim=64, k=8))
        fit(tmp_path / name, callback, module)
        return {**module.state_dict(), "random": torch.get_rng_state()}

    callback = Undisturbed(entries, every_n_steps=1 if kind == "cities" else 3)
    watched, alone = weights("watched", callback), weights("alone", RunAnalyses([]))
    assert not callback.failed
    assert [name for name in alone if not watched[name].equal(alone[name])] == []
    events = EventAccumulator(str(tmp_path / "watched" / "tb" / "version_0")).Reload()
    for each in entries:
        for kind in ("scalars", "tensors"):  # figures are tensors
            tags = [tag for tag in events.Tags()[kind] if tag.startswith(f"analyses/{each.name}/")]
            assert set(tags) > {f"analyses/{each.name}/text_summary"} & set(tags)
