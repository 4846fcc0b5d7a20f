"""Variants of a sweep: their names, options, and runs beside the same fits one by one."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from palinka.__main__ import main
from palinka.cli.sweep import Variants, expand, options
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule


def test_variants_have_the_names_of_what_they_override() -> None:
    listed = [{"k": 16}, {"k": 32, "latent_dim": 4096}, {"seed": 1}, {}]
    names = ["k=16", "k=32,latent_dim=4096", "seed=1", "base"]
    assert expand(listed) == dict(zip(names, listed, strict=True))
    grid = ["k=16,seed=0", "k=16,seed=1", "k=32,seed=0", "k=32,seed=1"]
    assert list(expand({"k": [16, 32], "seed": [0, 1]})) == grid
    folders = list(expand([{"a": "../x"}, {"a": ".._x"}, {"a": "x" * 500}]))
    assert folders == ["a=.._x", "a=.._x,1", "a=" + "x" * 118]


def test_one_list_of_a_grid_is_replaced_by_its_name() -> None:
    parser = ArgumentParser()
    parser.add_argument("--variants", type=Variants)
    given = ["--variants", "{k: [16, 32], seed: [0]}", "--variants.seed", "[0, 1]"]
    assert parser.parse_args(given).variants == {"k": [16, 32], "seed": [0, 1]}


def test_options_are_those_of_a_command_line_the_class_first() -> None:
    overrides = {"k": 3, "seed": 1, "sparsity_weight": 1e-05, "autoencoder": "TopK", "tied": False}
    assert options(overrides) == [
        "--model.autoencoder=TopK", "--model.autoencoder.k=3", "--seed_everything=1",
        "--model.sparsity_weight=1e-05", "--model.autoencoder.tied=false",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([], "gives 0 variants"),
        ({"k": list(range(1, 99))}, "gives 98 variants; expected 1 to 64"),
        ([{"k": 1}, {"k": 1}], "gives k=1 twice"),
        ([{"optimizer": "SGD"}], "shared by all variants; give it as model.optimizer"),
    ],
)
def test_what_makes_no_sweep_is_refused(variants: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expand(variants)


DATA = [
    "--data.train_tokens=2048", "--data.validation_tokens=512", "--data.batch_size=256",
    "--data.context_length=64", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
FIT = [
    "fit", *DATA, "--model.autoencoder=TopKAutoencoder", "--model.autoencoder.latent_dim=96",
    "--model.autoencoder.k=8",
]  # fmt: skip
VARIANTS = "--model.variants=[{latent_dim: 64}, {seed: 3, k: 4, sparsity_weight: 0.01}]"
FIRST, SECOND = "latent_dim=64", "seed=3,k=4,sparsity_weight=0.01"
ALONE = ["--seed_everything=3", "--model.autoencoder.k=4", "--model.sparsity_weight=0.01"]
RUN = "lightning_logs/version_0"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one epoch that went on to a second, and one of its variants alone."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALINKA_CACHE", str(folder / "cache"))
        (folder / "alone").mkdir()
        patch.chdir(folder / "alone")
        assert main([*FIT, *ALONE, "--trainer.max_epochs=2"]) == 0
        patch.chdir(folder)
        assert main([*FIT, VARIANTS, "--trainer.max_epochs=1"]) == 0
        # As if it had been killed a little later: a file that the checkpoint does not know.
        (folder / RUN / SECOND / "events.out.tfevents.1.late").write_bytes(b"")
        assert main([*FIT, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    return folder


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"tensors": 0, "scalars": 0}).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    seen = events(folder)
    return {
        tag: [(event.step, event.value) for event in seen.Scalars(tag)]
        for tag in seen.Tags()["scalars"]
        if not tag.startswith("throughput/") and tag != "epoch"
    }


def test_a_variant_is_what_its_own_fit_would_have_been(swept: Path) -> None:
    mine, theirs = swept / RUN / SECOND, swept / "alone" / RUN
    module, expected = (
        SparseAutoencoderModule.load_from_checkpoint(run / "checkpoints/last.ckpt")
        for run in (mine, theirs)
    )
    assert module.hparams == expected.hparams
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    found = scalars(mine)  # the whole curve, although the sweep was stopped in between
    assert {"loss/total", "val/fvu"} <= found.keys()
    for tag, points in scalars(theirs).items():
        assert len(found[tag]) == len(dict(found[tag]))
        assert dict(found[tag]) == dict(points)
    assert not (mine / "events.out.tfevents.1.late").exists()


def test_the_run_itself_has_what_all_share_and_a_comparison(swept: Path) -> None:
    run = swept / RUN
    tags = events(run).Tags()
    assert all(tag == "epoch" or tag.startswith("throughput/") for tag in tags["scalars"])
    assert {"config/text_summary", "analyses/sweep/l0_fvu"} <= set(tags["tensors"])
    with (run / "analyses/sweep/variants.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == [FIRST, SECOND]
    assert (rows[0]["latent_dim"], rows[0]["k"], rows[1]["seed"]) == ("64", "", "3")
    fvu = scalars(swept / "alone" / RUN)["val/fvu"][-1][1]
    assert float(rows[1]["val/fvu"]) == pytest.approx(fvu, rel=1e-6)
    drawn = (run / "analyses/sweep/l0_fvu.svg").read_text()
    # What differs in k, the penalty and the seed alone is on one curve.
    assert "<!-- TopK latent_dim=64 -->" in drawn
    assert "<!-- TopK -->" in drawn
    assert "seed=3" not in drawn


@pytest.mark.parametrize(
    ("variants", "more", "message"),
    [
        ("[{k: 4}, {k: 0}]", [], "variant k=0: k must be an integer"),
        ("[{k: many}]", [], "variant k=many: "),
        ("[{k: 4}]", ["--trainer.callbacks=ReportLatents"], "takes a single autoencoder"),
    ],
)
def test_what_makes_no_variant_is_refused_in_a_line(
    variants: str, more: list[str], message: str, workspace: Path, refused: Any
) -> None:
    assert message in refused(*FIT, f"--model.variants={variants}", *more)
    assert not list(workspace.glob(f"{RUN}/checkpoints/*"))
