"""A run that is killed, and started again, ends as the run that was never stopped."""

import functools
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

SMALL = [
    "--data.train_tokens=1280", "--data.validation_tokens=256", "--data.batch_size=128",
    "--data.context_length=64", "--model.autoencoder.latent_dim=128", "--model.autoencoder.k=8",
    "--model.sparsity_warmup_steps=7", "--model.decorrelation_warmup_steps=16",
    "--model.lr_scheduler=CosineAnnealingLR", "--model.lr_scheduler.T_max=40",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=1", "--trainer.callbacks+=RunCheckpoints",
]  # fmt: skip
# Ten batches an epoch. Checkpoints fall on logged steps and others, on the last batch of an epoch,
# and beside validations in its middle.
EVERY = "--trainer.callbacks.every_n_steps"
KINDS = {
    "every step": [f"{EVERY}=1"],
    "accumulated": [f"{EVERY}=2", "--trainer.accumulate_grad_batches=3"],
    "validated in between": [
        f"{EVERY}=5", "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=2",
    ],
}  # fmt: skip
CHECKPOINTS = "lightning_logs/version_0/checkpoints"
LAST = f"{CHECKPOINTS}/last.ckpt"
slow = pytest.mark.slow


def line(kind: str, *more: str) -> list[str]:
    return ["fit", *SMALL, *KINDS[kind], *more]


def stopping(**stops: Any) -> str:
    callback = {"class_path": "processes.Stops", "init_args": stops}
    return f"--trainer.callbacks+={json.dumps(callback)}"


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """All that TensorBoard's files hold, in the order of writing, as no viewer has tidied it."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in map(Event.FromString, RawEventFileLoader(str(path)).Load()):
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                if plugin == "scalars" or value.HasField("simple_value"):
                    number = value.simple_value or sum(value.tensor.float_val)
                    found.setdefault(value.tag, []).append((event.step, number))
    return {tag: points for tag, points in found.items() if not tag.startswith("throughput/")}


def end_of(folder: Path) -> dict[str, Any]:
    """What a run has come to, but for how fast it was."""
    checkpoint = torch.load(folder / LAST, weights_only=True)
    metrics = {n: float(v) for n, v in checkpoint["run"]["metrics"].items()}
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    return {
        **{name: checkpoint[name] for name in kept},
        "metrics": {n: v for n, v in metrics.items() if not n.startswith("throughput/")},
        "scalars": scalars(folder / "lightning_logs/version_0"),
    }


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}/{key}")
    elif isinstance(value, list):
        yield from flat(dict(enumerate(value)), name)
    elif isinstance(value, torch.Tensor):
        yield name, value.numpy().tobytes()
    else:
        yield name, value


def assert_same_end(found: Path, expected: Path) -> None:
    """Bit for bit, with one point for each step, and one log folder."""
    mine, theirs = dict(flat(end_of(found))), dict(flat(end_of(expected)))
    assert mine.keys() == theirs.keys()
    differing = [name for name in mine if mine[name] != theirs[name]]
    assert not differing, (found / "output.txt").read_text()[-2000:]
    for tag, points in end_of(found)["scalars"].items():
        steps = [step for step, _ in points]
        # Lightning logs the epoch with every group of metrics.
        assert tag == "epoch" or len(set(steps)) == len(steps)
    assert [folder.name for folder in (found / "lightning_logs").iterdir()] == ["version_0"]


References = Callable[[str], tuple[Path, float]]


@pytest.fixture(scope="module")
def references(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> References:
    """By kind a run that was never stopped, made when asked for, and its seconds."""
    harvest = ["harvest", *SMALL[:5]]
    commands.run(tmp_path_factory.mktemp("harvest"), harvest)

    @functools.cache
    def made(kind: str) -> tuple[Path, float]:
        folder = tmp_path_factory.mktemp("reference")
        start = time.monotonic()
        assert commands.run(folder, line(kind)) == 0, (folder / "output.txt").read_text()
        return folder, time.monotonic() - start

    return made


def test_reference_runs_are_what_they_should_be(references: References) -> None:
    for kind, steps, logged, validated in (("every step", 30, 30, 3), ("accumulated", 12, 12, 3)):
        end = end_of(references(kind)[0])
        assert end["global_step"] == steps
        assert len(end["scalars"]["loss/total"]) == logged
        assert len(end["scalars"]["val/fvu"]) == validated


@pytest.mark.parametrize(
    "kind", ["every step", *(pytest.param(k, marks=slow) for k in [*KINDS][1:])]
)
def test_killed_anywhere_a_run_ends_the_same(
    kind: str, commands: Any, references: References, tmp_path: Path
) -> None:
    expected, seconds = references(kind)
    arguments = line(kind, "--ckpt_path=last")
    moment = random.Random(kind).uniform(0.0, 0.5) * seconds
    while commands.run(tmp_path, arguments, killed_after=moment) != -signal.SIGKILL:
        shutil.rmtree(tmp_path)  # it was faster
        moment /= 2
    assert commands.run(tmp_path, arguments) == 0
    assert_same_end(tmp_path, expected)


def test_a_run_that_lacks_nothing_but_its_end_ends_the_same(
    commands: Any, references: References, tmp_path: Path
) -> None:
    expected, _ = references("every step")
    shutil.copytree(expected, tmp_path / "run")
    assert commands.run(tmp_path / "run", line("every step", "--ckpt_path=last")) == 0
    assert_same_end(tmp_path / "run", expected)
    assert "nothing left to train: step 30 of 30" in (tmp_path / "run/output.txt").read_text()


@pytest.mark.parametrize(
    ("kind", "by", "after", "in_validation", "status", "saved"),
    [
        ("accumulated", "SIGTERM", 5, False, 143, 6),  # its gradient is half there
        pytest.param("every step", "SIGTERM", 4, False, 143, 5, marks=slow),
        # the last batch of the epoch, before a validation, and in one
        pytest.param("validated in between", "SIGTERM", 9, False, 143, 10, marks=slow),
        pytest.param("validated in between", "SIGTERM", 4, False, 143, 5, marks=slow),
        pytest.param("validated in between", "SIGTERM", 10, True, 143, 11, marks=slow),
        pytest.param("every step", "SIGINT", 13, False, 130, 13, marks=slow),
        pytest.param("accumulated", "exception", 7, False, 1, 6, marks=slow),
    ],
)
def test_stopped_a_run_ends_the_same(
    kind: str, by: str, after: int, in_validation: bool, status: int, saved: int,
    commands: Any, references: References, tmp_path: Path,
) -> None:  # fmt: skip
    arguments = line(kind)
    if by == "SIGTERM":
        # Nothing but the signal makes the run save within an epoch.
        arguments = [a for a in arguments if EVERY not in a]
    stops = stopping(by=by, after_steps=after, in_validation=in_validation)
    assert commands.run(tmp_path, [*arguments, stops]) == status
    last = tmp_path / LAST
    assert torch.load(last, weights_only=True)["global_step"] == saved
    # What a loss of power leaves of a checkpoint that was being written.
    last.with_name("last.ckpt.tmp").write_bytes(last.read_bytes()[:1000])
    assert commands.run(tmp_path, [*arguments, "--ckpt_path=last"]) == 0
    assert_same_end(tmp_path, references(kind)[0])
    if by != "exception":
        assert f"saved at step {saved}" in (tmp_path / "output.txt").read_text()


@slow
def test_interventions_on_latents_leave_a_resumed_run_as_it_was(
    commands: Any, references: References, latents_study: list[Any], tmp_path: Path
) -> None:
    options = {"analyses": latents_study, "every_n_steps": 10}
    callback = json.dumps({"class_path": "RunAnalyses", "init_args": options})
    arguments = line("every step", f"--trainer.callbacks+={callback}")
    stops = stopping(by="SIGTERM", after_steps=14)
    assert commands.run(tmp_path, [*arguments, stops]) == 143
    assert commands.run(tmp_path, [*arguments, "--ckpt_path=last"]) == 0
    found, expected = end_of(tmp_path), end_of(references("every step")[0])
    analyzed = {n: found["scalars"].pop(n) for n in [*found["scalars"]] if "analyses/" in n}
    assert dict(flat(found)) == dict(flat(expected))
    for entry in latents_study:
        steps = {tuple(step for step, _ in points) for name, points in analyzed.items()
                 if name.startswith(f"analyses/{entry['name']}/")}  # fmt: skip
        assert (10, 20, 30) in steps, (tmp_path / "output.txt").read_text()[-2000:]


def test_a_damaged_checkpoint_is_passed_over(
    commands: Any, references: References, tmp_path: Path
) -> None:
    assert commands.run(tmp_path, line("every step", "--trainer.max_epochs=1")) == 0
    last = tmp_path / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    assert commands.run(tmp_path, line("every step", "--ckpt_path=last")) == 0
    assert_same_end(tmp_path, references("every step")[0])
    output = " ".join((tmp_path / "output.txt").read_text().split())
    assert "skipped, looking for an older one" in output
    assert "the run starts anew" not in output


@slow
def test_a_finished_run_goes_on_when_it_is_asked_for_more(
    commands: Any, references: References, tmp_path: Path
) -> None:
    """Also where it ended in the middle of an epoch."""
    for steps in (10, 17, 17, 30):
        more = line("every step", "--ckpt_path=last", f"--trainer.max_steps={steps}")
        assert commands.run(tmp_path, more) == 0
    assert_same_end(tmp_path, references("every step")[0])


def test_another_checkpoint_begins_a_run_of_its_own(commands: Any, references: References) -> None:
    folder = references("every step")[0]
    before = end_of(folder)
    more = ["fit", *SMALL, "--trainer.max_epochs=4", f"--ckpt_path={LAST}"]
    assert commands.run(folder, more) == 0
    assert dict(flat(end_of(folder))) == dict(flat(before))
    assert scalars(folder / "lightning_logs/version_1")["loss/total"][0][0] == 30
    shutil.rmtree(folder / "lightning_logs/version_1")


TWO_DEVICES = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=64"]


@pytest.fixture(scope="module")
def on_two(commands: Any, references: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two devices that was never stopped, on the activations of the others."""
    folder = tmp_path_factory.mktemp("two")
    arguments = line("accumulated", *TWO_DEVICES)
    assert commands.run_on(2, folder, arguments) == [0, 0], (folder / "output.txt").read_text()
    return folder


def test_two_devices_take_the_steps_of_one(on_two: Path, references: References) -> None:
    two, one = dict(flat(end_of(on_two))), dict(flat(end_of(references("accumulated")[0])))
    assert two.keys() == one.keys()
    for name, value in two.items():
        if isinstance(value, tuple):
            # Rounding may choose another latent, and Adam makes much of small gradients.
            assert value == pytest.approx(one[name], rel=1e-5, abs=1e-7)


@slow
@pytest.mark.parametrize(
    ("by", "after", "ranks", "statuses", "saved"),
    [
        ("SIGKILL", 5, (0, 1), [-9, -9], 4),
        ("SIGKILL", 6, (1,), [1, -9], 6),
        ("SIGTERM", 6, (0,), [143, 143], 7),
        ("SIGTERM", 2, (1,), [143, 143], 3),
        ("SIGTERM", 9, (0, 1), [143, 143], 10),
    ],
)
def test_stopped_on_two_devices_a_run_ends_the_same(
    by: str, after: int, ranks: tuple[int, ...], statuses: list[int], saved: int,
    commands: Any, on_two: Path, tmp_path: Path,
) -> None:  # fmt: skip
    arguments = line("accumulated", *TWO_DEVICES)
    stops = stopping(by=by, after_steps=after, ranks=ranks)
    assert commands.run_on(2, tmp_path, [*arguments, stops]) == statuses
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == saved
    assert commands.run_on(2, tmp_path, [*arguments, "--ckpt_path=last"]) == [0, 0]
    assert_same_end(tmp_path, on_two)


@slow
def test_twenty_kills(commands: Any, references: References, tmp_path: Path) -> None:
    moments = random.Random(1)
    kills = while_training = runs = 0
    while kills < 20:
        kind = list(KINDS)[runs % len(KINDS)]
        expected, seconds = references(kind)
        folder = tmp_path / str(runs)
        arguments = line(kind, "--ckpt_path=last")
        # Some runs are killed again when they have just gone on.
        for _ in range(moments.randint(1, 3)):
            ended = commands.run(folder, arguments, moments.uniform(0.0, 0.6) * seconds)
            kills += ended == -signal.SIGKILL
            while_training += ended == -signal.SIGKILL and (folder / LAST).exists()
        assert commands.run(folder, arguments) == 0
        assert_same_end(folder, expected)
        runs += 1
    assert while_training >= 10
