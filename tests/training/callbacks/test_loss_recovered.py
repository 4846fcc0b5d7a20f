from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from palinka.analyses.stats import bootstrap
from palinka.analyses.stats.bootstrap import document_intervals
from palinka.autoencoders import KSparseAutoencoder
from palinka.data import ActivationDataModule, Context, Passage
from palinka.errors import InputError
from palinka.evaluation.losses import (
    ERROR_RATIOS,
    RATIOS,
    cross_entropy,
    kl_divergence,
    patched_losses,
    sum_by_document,
)
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.edits import as_function
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks import (
    LanguageModelMetrics,
    ReportLatents,
    RunAnalyses,
    RunCheckpoints,
    loss_recovered,
)

SITE, LATER = "blocks.3.mlp.pre", "blocks.4.resid"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(LanguageModelSpec("mini"))


@pytest.fixture(scope="module")
def autoencoder(model: LanguageModel) -> SparseAutoencoderModule:
    torch.manual_seed(0)
    width = model.width(SITE)
    made = SparseAutoencoderModule(KSparseAutoencoder(width, 2 * width, k=32, unit_norm=True))
    made.scaling.set(0.1 * torch.randn(width), 0.5)
    return made.eval()


@pytest.fixture(scope="module")
def blocks() -> list[Context]:
    """Five contexts, of which the last is shorter, from three documents."""
    random = np.random.default_rng(0)
    documents = [[4] * 12, [4] * 5 + [7] * 7, [7] * 12, [7] * 2 + [9] * 10, [9] * 6]
    return [
        Context(random.integers(0, 8192, len(row)), np.array(row), np.arange(len(row)))
        for row in documents
    ]


MEAN = np.random.default_rng(1).normal(size=512)


def plain(
    model: LanguageModel, autoencoder: SparseAutoencoderModule, blocks: list[Context], skip: int
) -> dict[int, np.ndarray]:
    """Context by context in float64, with the replaced activations computed by hand."""
    found: dict[int, np.ndarray] = {}
    for block in blocks:
        ids = torch.from_numpy(block.tokens)[None]
        x = model.read(ids, [SITE])[SITE]
        values = {
            "clean": x,
            "spliced": autoencoder(x).reconstruction.detach(),
            "ablated": torch.zeros_like(x),
            "ablated_mean": torch.from_numpy(MEAN).to(x).expand_as(x),
        }
        log_p, later = {}, {}
        for name, new in values.items():
            whole = torch.cat([x[:, :skip], new[:, skip:]], dim=1)
            with model.replaced(SITE, lambda _, whole=whole: whole):
                log_p[name] = model.logits(ids).double().log_softmax(-1)[0, :-1]
                later[name] = model.read(ids, [LATER])[LATER][0, 1:].double()
        columns = [torch.ones(len(block.tokens) - 1)]
        columns += [-p.gather(1, ids[0, 1:, None])[:, 0] for p in log_p.values()]
        columns.append((log_p["clean"].exp() * (log_p["clean"] - log_p["spliced"])).sum(1))
        for name in ("spliced", "ablated_mean"):
            columns.append((later[name] - later["clean"]).square().mean(1))
        for document, row in zip(block.documents[1:], torch.stack(columns, 1), strict=True):
            found[int(document)] = found.get(int(document), np.zeros(8)) + row.numpy()
    return found


@pytest.mark.parametrize("skip", [0, 1])
def test_it_agrees_with_a_direct_computation(
    skip: int, model: LanguageModel, autoencoder: SparseAutoencoderModule, blocks: list[Context]
) -> None:
    documents, (sums,) = patched_losses(
        model,
        SITE,
        [as_function(autoencoder)],
        MEAN,
        blocks,
        skip=skip,
        batch_size=3,
        error_site=LATER,
    )  # fmt: skip
    expected = plain(model, autoencoder, blocks, skip)
    assert documents.tolist() == sorted(expected) == [4, 7, 9]
    direct = np.stack([expected[document] for document in sorted(expected)])
    np.testing.assert_allclose(sums / sums[:, :1], direct / sums[:, :1], rtol=1e-6, atol=1e-6)
    found = document_intervals(sums, {**RATIOS, **ERROR_RATIOS})
    _, clean, spliced, ablated, mean, kl, error, mean_error = direct.sum(axis=0)
    assert {name: ratio.value for name, ratio in found.items()} == pytest.approx(
        {
            "ce_clean": clean / 49,
            "ce_spliced": spliced / 49,
            "ce_delta": (spliced - clean) / 49,
            "ce_ablated": ablated / 49,
            "ce_ablated_mean": mean / 49,
            "loss_recovered": (ablated - spliced) / (ablated - clean),
            "loss_recovered_mean": (mean - spliced) / (mean - clean),
            "kl": kl / 49,
            "site_mse": error / 49,
            "site_recovered": 1 - error / mean_error,
        },
        rel=1e-4,
        abs=1e-5,
    )


def test_any_number_of_processes_and_any_batch_size_find_the_same(
    model: LanguageModel, autoencoder: SparseAutoencoderModule, blocks: list[Context]
) -> None:
    documents, (sums,) = patched_losses(
        model, SITE, [as_function(autoencoder)], MEAN, blocks, batch_size=2
    )
    parts = [
        patched_losses(
            model, SITE, [as_function(autoencoder)], MEAN, blocks, batch_size=2, share=(rank, 4)
        )
        for rank in range(4)
    ]
    assert any(len(own) == 0 for own, _ in parts)  # three batches for four processes
    documents_of, sums_of = zip(*parts, strict=True)
    together = sum_by_document(np.concatenate(documents_of), np.concatenate(sums_of, axis=1)[0])
    np.testing.assert_array_equal(together[0], documents)
    np.testing.assert_allclose(together[1], sums, rtol=1e-12)
    for size in (1, None):
        _, (other,) = patched_losses(
            model, SITE, [as_function(autoencoder)], MEAN, blocks, batch_size=size
        )
        np.testing.assert_allclose(other, sums, rtol=1e-5)


def test_what_changes_nothing_recovers_everything(
    model: LanguageModel, blocks: list[Context]
) -> None:
    _, (sums,) = patched_losses(model, SITE, [torch.clone], MEAN, blocks, error_site=SITE)
    found = document_intervals(sums, {**RATIOS, **ERROR_RATIOS})
    assert (found["site_mse"].value, found["site_recovered"].value) == (0.0, 1.0)
    assert found["kl"].value == 0.0
    assert found["loss_recovered"].value == found["loss_recovered_mean"].value == 1.0
    assert abs(found["ce_ablated"].value - found["ce_clean"].value) > 1e-3


def data(**options: Any) -> ActivationDataModule:
    settings: dict[str, Any] = {
        "context_length": 128, "train_tokens": 1016, "validation_tokens": 1016, "batch_size": 300,
        "center": True, "skip_first": True,
    }  # fmt: skip
    return ActivationDataModule(**{**settings, **options})


def module() -> SparseAutoencoderModule:
    torch.manual_seed(0)
    return SparseAutoencoderModule(
        KSparseAutoencoder(512, 640, k=16), decorrelation_weight=0.0, sparsity_weight=0.0
    )


def test_a_fit_measures_on_the_way_and_at_its_end_as_validate_does(
    workspace: Path, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "MINIMUM_DOCUMENTS", 3)
    loaded: list[str] = []
    load = LanguageModel.load
    monkeypatch.setattr(LanguageModel, "load", lambda spec: loaded.append(spec.name) or load(spec))
    rows, trained = data(), module()
    fit = make_trainer(
        callbacks=[LanguageModelMetrics(contexts=6, every_n_steps=2)], max_epochs=1,
        logger=CSVLogger(workspace),
    )  # fmt: skip
    logged: list[tuple[int, set[str]]] = []
    fit.loggers[0].log_metrics = lambda metrics, step: logged.append((step, set(metrics)))  # type: ignore[method-assign]
    trained.train()
    fit.fit(trained, datamodule=rows)
    assert trained.training
    bounds = {f"val_interval/{name}/{end}" for name in RATIOS for end in ("low", "high")}
    assert [step for step, names in logged if bounds <= names] == [2, 3]
    # Once for the harvest and once for the metrics; then it is gone.
    assert loaded == ["mini", "mini"]
    assert "loaded_language_model" not in vars(rows)
    ours = {f"val/{name}" for name in RATIOS} | bounds
    at_the_end = {name: float(fit.callback_metrics[name]) for name in ours}

    again = make_trainer(callbacks=[LanguageModelMetrics(contexts=6)])
    (measured,) = again.validate(trained, data(), verbose=False)
    assert {name: measured[name] for name in ours} == pytest.approx(at_the_end, rel=1e-6)
    low, high = (measured[f"val_interval/kl/{end}"] for end in ("low", "high"))
    assert 0.0 < low < measured["val/kl"] < high
    documents = {d for c in islice(rows.validation_contexts(), 6) for d in c.documents[1:]}
    assert measured["val_interval/documents"] == len(documents)

    again = make_trainer(callbacks=[LanguageModelMetrics(contexts=None)])
    (tested,) = again.test(trained, data(), verbose=False)
    assert tested["test/ce_clean"] != measured["val/ce_clean"]  # all eight contexts


@pytest.mark.usefixtures("workspace")
def test_a_passage_in_memory_is_judged_too_and_has_no_interval(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loss_recovered, "rank_zero_info", said.append)
    rows = data(
        corpus=Passage("The river was wide, and the water was still, and nobody saw him."),
        in_memory=True, validation_fraction=0.0, train_tokens=None, validation_tokens=None,
        batch_size=None,
    )  # fmt: skip
    fit = make_trainer(callbacks=[LanguageModelMetrics()])
    (measured,) = fit.validate(module(), rows, verbose=False)
    assert measured["val/ce_ablated"] > 0.0
    assert not any(name.startswith("val_interval") for name in measured)
    assert said == ["no intervals: 1 document, expected at least 8"]


@pytest.mark.usefixtures("workspace")
def test_a_run_with_divided_latents_says_that_it_cannot(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    divided = module()
    monkeypatch.setattr(SparseAutoencoderModule, "device_mesh", property(lambda self: object()))
    run = make_trainer()
    run.datamodule = data()  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="latents are on one device"):
        LanguageModelMetrics().on_train_end(run, divided)


OPTIONS = {
    LanguageModelMetrics: ("contexts", "every_n_steps", "batch_size"),
    ReportLatents: ("contexts", "tokens", "nearest"),
    RunCheckpoints: ("every_n_steps",),
    partial(RunAnalyses, []): ("every_n_steps",),
}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in OPTIONS.items() for n in names])
def test_numbers_out_of_range_are_refused(kind: Callable[..., Any], name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be an integer of at least 1, got 0"):
        kind(**{name: 0})


SMALL = [
    "--data.context_length=64", "--data.train_tokens=2048", "--data.validation_tokens=1920",
    "--data.batch_size=256", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
# Thirty contexts in batches of seven: unequal shares.
JUDGED = ["--trainer.callbacks+=LanguageModelMetrics", "--trainer.callbacks.batch_size=7"]


def judged(folder: Path) -> dict[str, float]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        name: events.Scalars(name)[-1].value
        for name in events.Tags()["scalars"]
        if name.startswith(("val/", "val_interval/"))
        and any(part in name for part in ("ce_", "loss_recovered", "kl", "fvu"))
    }


@pytest.mark.slow
def test_two_processes_find_what_one_finds(workspace: Path, commands: Any) -> None:
    assert commands.run_on(2, workspace, ["fit", *SMALL, *TWO, *JUDGED]) == [0, 0]
    last = "--ckpt_path=lightning_logs/version_0/checkpoints/last.ckpt"
    assert commands.run(workspace, ["validate", *SMALL, *JUDGED, last]) == 0
    assert commands.run_on(2, workspace, ["validate", *SMALL, *TWO, *JUDGED, last]) == [0, 0]
    fitted, one, two = (judged(workspace / "lightning_logs" / f"version_{n}") for n in range(3))
    assert {"val/kl", "val_interval/kl/low", "val/loss_recovered_mean"} <= set(one)
    assert two == pytest.approx(one, rel=1e-6)
    assert fitted == pytest.approx(one, rel=1e-6)


@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    chunk=st.integers(1, 200),
)
def test_cross_entropy_and_kl_agree_with_their_definitions(
    seed: int, vocabulary: int, scale: float, dtype: torch.dtype, chunk: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    clean, other = (
        (scale * torch.randn(2, 5, vocabulary, generator=random)).to(dtype) for _ in range(2)
    )
    targets = torch.randint(vocabulary, (2, 5), generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palinka.evaluation.losses.CHUNK_LOGITS", chunk)
        losses, divergences = cross_entropy(clean, targets), kl_divergence(clean, other)
    assert losses.dtype == divergences.dtype == torch.float64
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (clean, other))
    entropy = -log_p.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(losses, entropy, rtol=1e-9, atol=1e-9)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(divergences, kl, rtol=1e-9, atol=1e-9)
