from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from palinka.__main__ import main
from palinka.autoencoders import TopKAutoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks import LatentEvolution, latent_evolution

pytestmark = pytest.mark.usefixtures("undrawn")
LINE = [
    "fit", "--quiet", "--data.train_tokens=4096", "--data.validation_tokens=1024",
    "--data.batch_size=512", "--model.autoencoder.latent_dim=64", "--model.autoencoder.k=8",
    "--model.dead_after_tokens=100", "--trainer.accelerator=cpu", "--trainer.max_steps=3",
    "--trainer.limit_val_batches=0", "--trainer.callbacks+=LatentEvolution",
    "--trainer.callbacks.latents=[3,40]", "--trainer.callbacks.every_n_steps=2",
]  # fmt: skip


def test_the_same_text_is_drawn_at_the_beginning_and_every_so_many_steps(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[bytes], np.ndarray, str]] = []
    original = latent_evolution.text_heatmap

    def text_heatmap(tokens, heatmaps, columns):
        drawn.extend((tokens, one.values, one.caption) for one in heatmaps)
        return original(tokens, heatmaps, columns)

    monkeypatch.setattr(latent_evolution, "text_heatmap", text_heatmap)
    assert main(LINE) == 0
    assert [caption for _, _, caption in drawn] == [
        f"latent {latent} after {step} steps" for step in (0, 2, 3) for latent in (3, 40)
    ]
    assert {b"".join(tokens).decode() for tokens, _, _ in drawn} == {latent_evolution.TEXT}
    assert all(len(values) == len(tokens) for tokens, values, _ in drawn)
    # Training has changed at least one of the two.
    assert any(not np.allclose(drawn[i][1], drawn[i + 4][1]) for i in (0, 1))
    events = EventAccumulator(str(workspace / "lightning_logs/version_0"), {"tensors": 0}).Reload()
    assert [image.step for image in events.Tensors("forming/latents")] == [0, 2, 3]


def test_each_variant_of_a_sweep_has_its_own_strongest_latents(workspace: Path) -> None:
    given = "--trainer.callbacks.latents=[3,40]"
    assert main([*(x for x in LINE if x != given), "--model.variants={k: [4, 8]}"]) == 0
    saved = torch.load(workspace / "lightning_logs/version_0/checkpoints/last.ckpt")
    (chosen,) = (c["chosen"] for c in saved["callbacks"].values() if "chosen" in c)
    assert list(chosen) == ["k=4", "k=8"]
    assert all(len(set(latents)) == latent_evolution.MAX_LATENTS for latents in chosen.values())
    for name in chosen:
        folder = str(workspace / "lightning_logs/version_0" / name)
        events = EventAccumulator(folder, {"tensors": 0}).Reload()
        assert [image.step for image in events.Tensors("forming/latents")] == [0, 2, 3]


def test_a_number_of_steps_is_positive() -> None:
    with pytest.raises(InputError, match="LatentEvolution"):
        LatentEvolution(every_n_steps=0)


@pytest.mark.parametrize(("given", "expected"), [(None, (5, 6, 1, 2)), ([7], (7,)), ([8], None)])
def test_a_resumed_run_draws_the_same_latents_unless_silent_or_others_are_given(
    given: list[int] | None, expected: tuple[int, ...] | None
) -> None:
    module = SparseAutoencoderModule(TopKAutoencoder(4, 8, k=2))
    resumed, trainer = LatentEvolution(given), Trainer(accelerator="cpu", logger=False)
    resumed.load_state_dict({"chosen": {"": (3, 5, 6)}})
    resumed._tokens, resumed._rows = [b"one"], torch.zeros(1, 4)
    strengths = torch.tensor([[0.0, 9.0, 8.0, 0.0, 7.0, 1.0, 2.0, 0.0]])
    module.encode = lambda x: strengths  # type: ignore[method-assign]
    refuses = pytest.raises(InputError, match="latent is 8; expected 0 to 7")
    with nullcontext() if expected else refuses:
        resumed.at_step(trainer, module)
        assert resumed.state_dict() == {"chosen": {"": expected}}
