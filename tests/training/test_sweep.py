"""Every variant of a sweep ends exactly as a run of its own."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor

from palinka.autoencoders import BatchTopKAutoencoder, KSparseAutoencoder, ReLUAutoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.checkpoint import settings_of
from palinka.training.sweep import of_variant, strip_prefix

# Warm-ups, unit norm, biases, a width of its own, other architectures, one of which begins from
# the data.
VARIANTS: dict[str, Callable[[], SparseAutoencoderModule]] = {
    "a": lambda: module(KSparseAutoencoder, 0, k=2),
    "b": lambda: module(KSparseAutoencoder, 1, k=3, unit_norm=True, decoder_bias=True, tied=False),
    "c": lambda: module(KSparseAutoencoder, 0, k=2, latent_dim=20, lr=0.03),
    "d": lambda: module(ReLUAutoencoder, 2, latent_dim=12),
    "e": lambda: module(BatchTopKAutoencoder, 3, k=2, dead_after_tokens=5),
}
BY_VALUE = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
OPTIONS = [
    {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param(BY_VALUE, marks=pytest.mark.slow),
]


def module(
    kind: type, seed: int, lr: float = 0.01, dead_after_tokens: int = 9, **arguments: Any
) -> SparseAutoencoderModule:
    torch.manual_seed(seed)
    return SparseAutoencoderModule(
        kind(8, **{"latent_dim": 16, **arguments}),
        sparsity_weight=0.1,
        decorrelation_weight=0.1,
        sparsity_warmup_steps=3,
        decorrelation_warmup_steps=7,
        dead_after_tokens=dead_after_tokens,
        optimizer=lambda params: torch.optim.Adam(params, lr=lr),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12),
    )


def sweep(names: Iterable[str] = VARIANTS) -> SweepModule:
    return SweepModule({name: VARIANTS[name]() for name in names})


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        yield from flat(dict(enumerate(value)), name)
    else:
        yield name, value.numpy().tobytes() if isinstance(value, Tensor) else value


@pytest.fixture
def data(rows_data: Any, rows: Tensor, statistics: Any) -> Any:
    return rows_data(
        rows,
        batch_size=6,
        validation=rows[:10] + 0.5,
        source={"site": "here"},
        cache_identity="x",
        training_rows=lambda count: rows[:count],
        input_statistics=statistics(mean=rows.mean(dim=0).numpy(), scale=0.7),
    )


def end(trainer: Trainer, path: Path) -> tuple[dict[str, Any], Any]:
    trainer.save_checkpoint(path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics, torch.load(path, weights_only=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_variant_ends_bit_for_bit_as_a_run_of_its_own(
    options: dict[str, Any], data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(max_epochs=2, **options)
    trainer.fit(sweep(), datamodule=data)
    metrics, checkpoint = end(trainer, tmp_path / "sweep.ckpt")
    for name, make in VARIANTS.items():
        own = make_trainer(max_epochs=2, **options)
        own.fit(make(), datamodule=data)
        expected, theirs = end(own, tmp_path / "own.ckpt")
        assert len(expected) > 10
        assert strip_prefix(metrics, f"{name}/") == expected
        mine = dict(flat(of_variant(checkpoint, name)))
        # Lightning's name for the parameter that the settings came in.
        theirs = {key: value for key, value in flat(theirs) if key != "/hparams_name"}
        assert mine == theirs


def test_a_sweep_resumes_together_and_each_variant_alone(
    data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    trainer, together, path = make_trainer(max_epochs=1), sweep(), tmp_path / "sweep.ckpt"
    trainer.fit(together, datamodule=data)
    _, checkpoint = end(trainer, path)
    cases: list[tuple[Callable[[], Any], Path]] = [(sweep, path)]
    for name in ("b", "e"):
        own = tmp_path / f"{name}.ckpt"
        torch.save(of_variant(checkpoint, name), own)
        loaded = SparseAutoencoderModule.load_from_checkpoint(own)
        assert dict(flat(loaded.state_dict())) == dict(flat(together.variants[name].state_dict()))
        cases.append((VARIANTS[name], own))
    for make, begun in cases:
        states = []
        for start in (None, begun):
            fitted, ran = make(), make_trainer(max_epochs=2)
            ran.fit(fitted, datamodule=data, ckpt_path=start)
            optimizer = ran.optimizers[0].state_dict()
            states.append(dict(flat([fitted.state_dict(), optimizer])))
        assert states[0] == states[1]


def test_a_checkpoint_of_other_variants_is_refused(
    data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    trainer, path = make_trainer(max_steps=1), tmp_path / "sweep.ckpt"
    trainer.fit(sweep(), datamodule=data)
    trainer.save_checkpoint(path)
    fewer = sweep("ab")
    with pytest.raises(InputError, match=r"holds a, b, c, d, e, but .* sweep of a, b:"):
        fewer.check_checkpoint(path, data, resume=True)
    with pytest.raises(InputError, match="holds a, b, c, d, e"):
        make_trainer(max_steps=2).fit(fewer, datamodule=data, ckpt_path=path)
    other = SweepModule({**sweep("abc").variants, "d": VARIANTS["a"](), "e": VARIANTS["e"]()})
    with pytest.raises(InputError, match="holds a ReLUAutoencoder"):
        other.check_checkpoint(path, data, resume=True)
    with pytest.raises(InputError, match=r"is of a sweep: give .*/a/"):
        settings_of(path)


def test_no_hook_of_a_variant_is_forgotten() -> None:
    """What the module does in a hook of Lightning's, a sweep must do for every variant."""
    hooks = {
        name
        for name, value in vars(SparseAutoencoderModule).items()
        if callable(value) and not name.startswith("_") and hasattr(LightningModule, name)
    }
    # A sweep has no latents of its own, and its variants are measured by their checkpoints.
    elsewhere = {name for name in hooks if name.startswith(("on_test", "test", "predict"))}
    elsewhere |= {"forward", "on_predict_epoch_end"}
    assert {"setup", "on_train_end", "validation_step"} <= hooks
    assert hooks - elsewhere <= vars(SweepModule).keys()


def test_what_would_mix_the_variants_is_refused(
    data: Any, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[tuple[str, str, Any, str]] = [
        ("b", "optimizer_factory", lambda p: torch.optim.SGD(p, lr=0.1), "one class .* Adam, SGD"),
        ("ab", "optimizer_factory", torch.optim.LBFGS, "other than LBFGS"),
        ("a", "lr_scheduler_factory", lambda o: ReduceLROnPlateau(o, monitor="x"), "ReduceLROn"),
    ]
    for names, attribute, value, message in changes:
        mixed = sweep("ab")
        for name in names:
            monkeypatch.setattr(mixed.variants[name], attribute, value)
        with pytest.raises(InputError, match=message):
            make_trainer(max_steps=1).fit(mixed, datamodule=data)
    narrow = SparseAutoencoderModule(KSparseAutoencoder(4))
    with pytest.raises(InputError, match="got 4 and 8"):
        SweepModule({"a": VARIANTS["a"](), "narrow": narrow})
    with pytest.raises(InputError, match="got none"):
        SweepModule({})


@pytest.mark.slow
def test_on_two_processes_each_variant_ends_as_a_run_of_its_own(
    on_processes: Any, tmp_path: Path
) -> None:
    with on_processes(Path(__file__).with_name("processes.py"), 2, "sweep", 2, 1, tmp_path):
        pass
    found = torch.load(tmp_path / "2x1.pt", weights_only=True)
    assert found["together"] == found["alone"]
    assert "b/val/fvu" in found["together"]
    for mine, alone in found["states"].values():
        torch.testing.assert_close(mine, alone, rtol=0, atol=0)
