"""`palinka fit` with variants, as a user types it, beside the same fits one by one."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from palinka.__main__ import main
from palinka.training import SparseAutoencoderModule

SMALL = [
    "--data.train_tokens=2048",
    "--data.validation_tokens=512",
    "--data.batch_size=256",
    "--data.context_length=64",
    "--model.autoencoder=TopKAutoencoder",
    "--model.autoencoder.latent_dim=96",
    "--model.autoencoder.k=8",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
VARIANTS = "--model.variants=[{latent_dim: 64}, {seed: 3, k: 4, sparsity_weight: 0.01}]"
FIRST, SECOND = "latent_dim=64", "seed=3,k=4,sparsity_weight=0.01"
ALONE = ["--seed_everything=3", "--model.autoencoder.k=4", "--model.sparsity_weight=0.01"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sweep of one epoch that went on to a second, and one of its variants alone."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALINKA_CACHE", str(folder / "cache"))
        (folder / "alone").mkdir()
        patch.chdir(folder / "alone")
        assert main(["fit", *SMALL, *ALONE, "--trainer.max_epochs=2"]) == 0
        patch.chdir(folder)
        assert main(["fit", *SMALL, VARIANTS, "--trainer.max_epochs=1"]) == 0
        # As if it had been killed a little later: a file that the checkpoint does not know.
        late = folder / "lightning_logs/version_0" / SECOND / "events.out.tfevents.1.late"
        late.write_bytes(b"")
        assert main(["fit", *SMALL, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
        yield folder


def runs(swept: Path) -> tuple[Path, Path]:
    """The log folders of the same variant in the sweep and alone."""
    return swept / "lightning_logs/version_0" / SECOND, swept / "alone/lightning_logs/version_0"


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    seen = events(folder)
    return {
        tag: [(event.step, event.value) for event in seen.Scalars(tag)]
        for tag in seen.Tags()["scalars"]
        if not tag.startswith("throughput/") and tag != "epoch"
    }


def test_a_variant_is_what_its_own_fit_would_have_been(swept: Path) -> None:
    mine, theirs = runs(swept)
    module, expected = (
        SparseAutoencoderModule.load_from_checkpoint(run / "checkpoints/last.ckpt")
        for run in (mine, theirs)
    )
    assert module.hparams == expected.hparams
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    # The whole curve, once each, although the sweep was stopped in between.
    found, curves = scalars(mine), scalars(theirs)
    assert {"loss/total", "val/fvu", "final/fvu"} <= found.keys()
    assert {tag: dict(points) for tag, points in found.items()} == {
        tag: dict(points) for tag, points in curves.items()
    }
    assert all(len(points) == len(dict(points)) for tag, points in found.items())
    assert set(events(mine).Tags()["histograms"]) == set(events(theirs).Tags()["histograms"])
    assert not (mine / "events.out.tfevents.1.late").exists()


def test_the_run_itself_logs_what_all_share(swept: Path) -> None:
    tags = events(swept / "lightning_logs/version_0").Tags()
    assert set(tags["scalars"]) == {
        "epoch",
        "throughput/tokens_per_second",
        "throughput/loader_wait",
    }
    assert "config/text_summary" in tags["tensors"]


def test_the_findings_have_a_row_for_each_variant(swept: Path) -> None:
    with (swept / "lightning_logs/version_0/analyses/sweep/variants.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == [FIRST, SECOND]
    assert (rows[0]["latent_dim"], rows[0]["k"], rows[1]["seed"]) == ("64", "", "3")
    fvu = scalars(runs(swept)[1])["val/fvu"][-1][1]
    assert float(rows[1]["val/fvu"]) == pytest.approx(fvu, rel=1e-6)


def test_the_figure_has_a_curve_for_each_width(swept: Path) -> None:
    run = swept / "lightning_logs/version_0"
    drawn = (run / "analyses/sweep/l0_fvu.svg").read_text()
    # What differs in k, the penalty and the seed alone is on one curve.
    assert "<!-- TopK latent_dim=64 -->" in drawn
    assert "<!-- TopK -->" in drawn
    assert "seed=3" not in drawn
    assert "analyses/sweep/l0_fvu" in events(run).Tags()["tensors"]


def test_measuring_takes_a_variants_checkpoint_and_refuses_the_sweeps(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(swept)
    monkeypatch.setenv("PALINKA_CACHE", str(swept / "cache"))
    data = [option for option in SMALL if not option.startswith("--model")]
    assert main(["validate", *data, "--ckpt_path=last"]) == 2
    refusal = capsys.readouterr().err
    assert "sweep of 2 autoencoders" in refusal
    path = f"lightning_logs/version_0/{FIRST}/checkpoints/last.ckpt"
    assert path in refusal
    assert main(["validate", *data, f"--ckpt_path={path}", "--trainer.logger=false"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.variants=[{k: 4}, {k: 0}]"], "variant k=0: k must be an integer"),
        (["--model.variants=[{k: many}]"], "variant k=many: "),
        (
            ["--model.variants=[{k: 4}]", "--trainer.callbacks=ReportLatents"],
            "ReportLatents takes a single autoencoder",
        ),
    ],
)
def test_what_makes_no_variant_is_refused_in_a_line(
    arguments: list[str], message: str, swept: Path, workspace: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PALINKA_CACHE", str(swept / "cache"))
    assert main(["fit", *SMALL, *arguments]) == 2
    refusal = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in refusal
    assert not list(workspace.glob("lightning_logs/version_0/checkpoints/*"))
