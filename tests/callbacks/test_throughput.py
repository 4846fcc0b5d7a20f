from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from palinka.training.callbacks import tensorboard as throughput


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
