from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.image import metadata
from torch.utils.tensorboard import SummaryWriter

from palinka.autoencoders import KSparseAutoencoder, TopKAutoencoder
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks import LanguageModelMetrics, tensorboard
from palinka.training.callbacks.tensorboard import add_figure, layout, nearest_cosine


def test_one_page_is_an_overview_of_the_run() -> None:
    def tags_of(autoencoder: Any, weight: float, *callbacks: Callback) -> set[str]:
        module = SparseAutoencoderModule(autoencoder(4, 8, k=2), weight, decorrelation_weight=0.0)
        trainer = Trainer(accelerator="cpu", logger=False, callbacks=list(callbacks))
        (story,) = layout(trainer, module).values()
        assert all(kind == "Multiline" and tags for kind, tags in story.values())
        return {tag for _, tags in story.values() for tag in tags}

    assert not {"loss/sparsity$", "val/ce_delta$"} & tags_of(KSparseAutoencoder, 0.0)
    assert "loss/auxiliary$" in tags_of(TopKAutoencoder, 0.0)
    tags = tags_of(KSparseAutoencoder, 0.1, LanguageModelMetrics())
    # Each is a regular expression that must not match `val/fvu_legacy` and the like.
    assert all(tag.endswith("$") for tag in tags)
    assert {"loss/total$", "loss/sparsity$", "sparsity/l0$", "val/ce_delta$"} < tags


def test_a_figure_is_logged_with_its_caption(tmp_path: Path) -> None:
    figure = Figure((3, 2), dpi=50)
    figure.set_label("What it shows.")
    writer = SummaryWriter(tmp_path)
    add_figure(writer, "analyses/one/score", figure, 7)
    writer.close()
    (path,) = tmp_path.iterdir()
    # As TensorBoard's server reads it.
    events = EventFileLoader(str(path)).Load()
    (value,) = (value for event in events for value in event.summary.value)
    assert value.tag == "analyses/one/score"
    assert value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME
    assert value.metadata.summary_description == "What it shows."
    width, height, png = value.tensor.string_val
    assert (width, height, png[:4]) == (b"150", b"100", b"\x89PNG")


def test_nearest_cosine_is_that_of_the_closest_other_direction() -> None:
    dictionary = torch.randn(31, 7, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(dictionary)
    expected = (unit @ unit.T).fill_diagonal_(-1.0).amax(dim=1)
    torch.testing.assert_close(nearest_cosine(dictionary), expected)
    torch.testing.assert_close(nearest_cosine(dictionary, sample=3), expected[[0, 15, 30]])


def test_the_rate_counts_all_devices_and_the_wait_is_a_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(tensorboard, "time", clock)
    loader = SimpleNamespace(wait_seconds=5.0)
    trainer: Any = SimpleNamespace(
        train_dataloader=loader, log_every_n_steps=2, global_step=0,
        distributed_sampler_kwargs={"num_replicas": 3},
    )  # fmt: skip
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(log=lambda name, value, **_: logged.update({name: value}))
    monitor = tensorboard.ThroughputMonitor()

    def step(seconds: float) -> None:
        clock.now += seconds
        trainer.global_step += 1
        monitor.on_train_batch_end(trainer, module, None, torch.zeros(10, 4), 0)

    monitor.on_train_start(trainer, module)  # all that a run resumed within an epoch calls
    step(1.0)
    assert logged == {}
    loader.wait_seconds += 1.0
    step(3.0)
    assert logged["throughput/tokens_per_second"] == pytest.approx(2 * 10 * 3 / 4.0)
    assert logged["throughput/loader_wait"] == pytest.approx(1.0 / 4.0)
    # What a validation takes is no part of the rate.
    clock.now += 50.0
    monitor.on_validation_end(trainer, module)
    step(1.0)
    step(0.0)
    assert logged["throughput/tokens_per_second"] == pytest.approx(2 * 10 * 3 / 1.0)
