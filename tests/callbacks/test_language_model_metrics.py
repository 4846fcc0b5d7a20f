import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from palinka.autoencoders import KSparseAutoencoder
from palinka.data import ActivationDataModule, Passage
from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks import LanguageModelMetrics, loss_recovered

NAMES = {
    *("ce_clean", "ce_spliced", "ce_delta", "ce_ablated", "ce_ablated_mean"),
    *("loss_recovered", "loss_recovered_mean", "kl"),
}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the models that were loaded."""
    loaded: list[str] = []
    load = LanguageModel.load

    def counted(spec: LanguageModelSpec) -> Any:
        loaded.append(spec.name)
        return load(spec)

    monkeypatch.setattr(LanguageModel, "load", counted)
    return loaded


def data(**options: Any) -> ActivationDataModule:
    settings: dict[str, Any] = {
        "context_length": 128, "train_tokens": 1016, "validation_tokens": 1016, "batch_size": 300,
        "center": True, "skip_first": True,
    }  # fmt: skip
    return ActivationDataModule(**{**settings, **options})


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=1, logger=CSVLogger(folder), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        num_sanity_val_steps=0, default_root_dir=folder, log_every_n_steps=1, **options,
    )  # fmt: skip


def module() -> SparseAutoencoderModule:
    torch.manual_seed(0)
    return SparseAutoencoderModule(
        KSparseAutoencoder(512, 640, k=16), decorrelation_weight=0.0, sparsity_weight=0.0
    )


def test_a_fit_measures_on_the_way_and_at_its_end_as_validate_does(
    workspace: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    intervals = sys.modules["palinka.analyses.stats.bootstrap"]
    monkeypatch.setattr(intervals, "MINIMUM_DOCUMENTS", 3)
    rows, trained = data(), module()
    callback = LanguageModelMetrics(contexts=6, every_n_steps=2)
    fit = trainer(workspace, callback)
    steps = []
    fit.loggers[0].log_metrics = lambda metrics, step: steps.append(  # type: ignore[method-assign]
        (step, {name for name in metrics if name.startswith("val_interval/")})
    )
    trained.train()
    fit.fit(trained, datamodule=rows)
    assert trained.training
    judged = [step for step, names in steps if names]
    assert judged == [2, 3]
    bounds = {f"val_interval/{name}/{end}" for name in NAMES for end in ("low", "high")}
    assert (2, bounds) in steps
    # Once for the harvest and once for the metrics; then it is gone.
    assert loads == ["mini", "mini"]
    assert "loaded_language_model" not in vars(rows)
    at_the_end = {
        name: float(value)
        for name, value in fit.callback_metrics.items()
        if name.removeprefix("val/") in NAMES or name.startswith("val_interval/")
    }
    assert {name for name in at_the_end if name.startswith("val/")} == {f"val/{n}" for n in NAMES}

    again = LanguageModelMetrics(contexts=6)
    (measured,) = trainer(workspace, again).validate(trained, data(), verbose=False)
    assert {name: measured[name] for name in at_the_end} == pytest.approx(at_the_end, rel=1e-6)
    assert again.found == callback.found
    assert loads == ["mini"] * 3
    found = again.found
    more = found["ce_spliced"].value - found["ce_clean"].value
    assert found["ce_delta"].value == pytest.approx(more, rel=1e-9)
    assert 0.0 < found["kl"].low < found["kl"].value < found["kl"].high

    (tested,) = trainer(workspace, LanguageModelMetrics(contexts=None)).test(
        trained, data(), verbose=False
    )
    assert tested["test/ce_clean"] != measured["val/ce_clean"]  # all eight contexts


def test_a_passage_in_memory_is_judged_too_and_has_no_interval(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loss_recovered, "rank_zero_info", said.append)
    rows = data(
        corpus=Passage("The river was wide, and the water was still, and nobody saw him."),
        in_memory=True, validation_fraction=0.0, train_tokens=None, validation_tokens=None,
        batch_size=None,
    )  # fmt: skip
    callback = LanguageModelMetrics()
    (measured,) = trainer(workspace, callback).validate(module(), rows, verbose=False)
    assert measured["val/ce_ablated"] > 0.0
    assert not any(name.startswith("val_interval") for name in measured)
    assert said == ["no intervals: 1 document(s), expected at least 8"]


def test_a_run_with_divided_latents_says_that_it_cannot(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    divided = module()
    monkeypatch.setattr(SparseAutoencoderModule, "device_mesh", property(lambda self: object()))
    run = trainer(workspace)
    run.datamodule = data()  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="no device holds all latents"):
        LanguageModelMetrics().on_train_end(run, divided)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contexts": 0}, "contexts is 0; expected at least 1"),
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LanguageModelMetrics(**options)
