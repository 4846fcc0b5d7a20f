from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.image import metadata
from torch.utils.tensorboard import SummaryWriter

from palinka.training.callbacks import tensorboard as throughput
from palinka.training.callbacks.tensorboard import LAYOUT, add_figure, nearest_cosine


def test_one_page_is_an_overview_of_the_run() -> None:
    (story,) = LAYOUT.values()
    shown = {tag.removesuffix("$") for _, tags in story.values() for tag in tags}
    assert shown >= {
        "loss/total",
        "reconstruction/fvu",
        "sparsity/l0",
        "val/dead",
        "val/ce_delta",
        "throughput/tokens_per_second",
    }
    # Each is a regular expression that must not match `val/fvu_legacy` and the like.
    assert all(tag.endswith("$") for _, tags in story.values() for tag in tags)


def test_a_figure_is_logged_with_its_caption(tmp_path: Path) -> None:
    figure = Figure((3, 2), dpi=50)
    figure.set_label("What it shows.")
    writer = SummaryWriter(tmp_path)
    add_figure(writer, "analyses/one/score", figure, 7)
    writer.close()
    (path,) = tmp_path.iterdir()
    # As TensorBoard's server reads it.
    values = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    (value,) = values
    assert value.tag == "analyses/one/score"
    assert value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME
    assert value.metadata.summary_description == "What it shows."
    width, height, png = value.tensor.string_val
    assert (width, height) == (b"150", b"100")
    assert png.startswith(b"\x89PNG")


def test_nearest_cosine_is_that_of_the_closest_other_direction() -> None:
    dictionary = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    expected = []
    for i, row in enumerate(dictionary):
        others = [
            torch.dot(row, o) / row.norm() / o.norm() for j, o in enumerate(dictionary) if j != i
        ]
        expected.append(float(max(others)))
    assert nearest_cosine(dictionary).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_sample_is_taken_evenly() -> None:
    dictionary = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        nearest_cosine(dictionary, sample=3), nearest_cosine(dictionary)[[0, 5, 10]]
    )


def test_one_latent_has_no_neighbour() -> None:
    assert nearest_cosine(torch.ones(1, 4)).isnan().all()


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_the_rate_counts_all_devices_and_the_wait_is_a_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    loader = SimpleNamespace(wait_seconds=5.0)
    trainer = cast(
        Any,
        SimpleNamespace(
            train_dataloader=loader,
            log_every_n_steps=2,
            distributed_sampler_kwargs={"num_replicas": 3},
            global_step=0,
        ),
    )
    logged: dict[str, float] = {}
    module = cast(Any, SimpleNamespace(log=lambda name, value, **_: logged.update({name: value})))

    monitor = throughput.ThroughputMonitor()
    monitor.on_train_epoch_start(trainer, module)

    def step() -> None:
        trainer.global_step += 1
        monitor.on_train_batch_end(trainer, module, None, torch.zeros(10, 4), 0)

    clock.now += 1.0
    step()
    assert logged == {}
    clock.now += 3.0
    loader.wait_seconds += 1.0
    step()
    assert logged["throughput/tokens_per_second"] == pytest.approx(2 * 10 * 3 / 4.0)
    assert logged["throughput/loader_wait"] == pytest.approx(1.0 / 4.0)

    # What a validation takes is no part of the rate.
    clock.now += 50.0
    monitor.on_validation_end(trainer, module)
    clock.now += 1.0
    step()
    step()
    assert logged["throughput/tokens_per_second"] == pytest.approx(2 * 10 * 3 / 1.0)
