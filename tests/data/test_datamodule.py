"""The data module: harvested once, split by document, the same batches after a restart."""

import importlib
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from palinka.data import ActivationDataModule, Passage, TextFiles, split_of
from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec

SITE, TARGET = "blocks.1.mlp.pre", "blocks.1.mlp.out"
WIDTH, TARGET_WIDTH, HEAD_WIDTH = 512, 128, 32
CPU = LanguageModelSpec("mini", device="cpu")
HARVEST = importlib.import_module("palinka.data.harvest")
READING = importlib.import_module("palinka.data.cache")
DATAMODULE = importlib.import_module("palinka.data.datamodule")
# A change of these would throw away the caches of every user.
KEY = "21dd91ad7efc765e58a3bfa70e005f123484e31b74b9f5998c03b51352401925"
KEY_IN_MEMORY = "a3dd05a35894b5274bec4ce64df54941aa2bf509d435bb804c488ffe622e5b56"
TEXT = (
    "The river was low that summer, and the boats lay on the mud with their ropes slack. "
    "He saw him at the market, and she gave her brother a letter, which he did not read."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files of text, no two alike."""
    folder = tmp_path_factory.mktemp("texts")
    words = TEXT.split()
    for index in range(12):
        order = np.random.default_rng(index).integers(len(words), size=90)
        (folder / f"{index:02}.txt").write_text(" ".join(words[place] for place in order))
    return folder


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(CPU)


@pytest.fixture(autouse=True)
def one_load_for_all_tests(monkeypatch: pytest.MonkeyPatch, model: LanguageModel) -> None:
    monkeypatch.setattr(LanguageModel, "load", lambda _: model)


@pytest.fixture
def settings(folder: Path, caches: Path) -> dict[str, Any]:
    return {
        "language_model": CPU,
        "site": SITE,
        "corpus": TextFiles(folder),
        "batch_size": 64,
        "context_length": 16,
        "validation_fraction": 0.25,
        "cache_dir": caches,
    }


def ready(**settings: Any) -> ActivationDataModule:
    data = ActivationDataModule(**settings)
    data.prepare_data()
    data.setup("fit")
    return data


def all_rows(data: ActivationDataModule, split: str = "train") -> torch.Tensor:
    rows = data._open(data.train_spec if split == "train" else data.validation_spec)
    return rows.read_rows(0, rows.rows)


def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: LanguageModelSpec) -> LanguageModel:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(LanguageModel, "load", refuse)


class Recorder(pl.LightningModule):
    """Takes note of the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 1)
        self.training_batches: list[torch.Tensor] = []
        self.validation_batches: list[torch.Tensor] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.training_batches.append(batch.clone())
        return self.layer(batch.float()).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.validation_batches.append(batch.clone())

    test_step = validation_step

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def trainer(folder: Path, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )


def test_nothing_is_harvested_twice_and_one_load_of_the_model_serves_both_splits(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: LanguageModel
) -> None:
    settings |= {"cache_dir": tmp_path}
    loads, barriers = [], []
    monkeypatch.setattr(LanguageModel, "load", lambda spec: loads.append(spec) or model)
    made = ActivationDataModule(**settings).harvest(barrier=lambda: barriers.append(None))
    assert (len(loads), len(barriers)) == (1, 4)
    assert min(made.values()) > 0
    no_weights(monkeypatch)
    assert list(ActivationDataModule(**settings).harvest().values()) == [0, 0]
    again = ready(**settings)
    train, validation = made
    assert repr(again).endswith(f", batch_size=64, {train!r}, {validation!r})")
    assert repr(train).startswith(f"Cache(train activations: {train.rows:,} rows of {WIDTH} ")
    assert again.width == WIDTH
    assert next(iter(again.train_dataloader())).shape == (64, WIDTH)
    again.teardown("fit")


@pytest.mark.parametrize("in_memory", [False, True])
def test_rows_to_begin_with_come_from_all_over_the_split(
    settings: dict[str, Any], in_memory: bool
) -> None:
    data = ready(**settings, in_memory=in_memory)
    rows = all_rows(data)
    there = Counter(row.numpy().tobytes() for row in rows)
    for count in (1, 70, 200, 10**6):
        some = data.training_rows(count)
        assert Counter(row.numpy().tobytes() for row in some) <= there  # none more than once
        assert min(count, len(rows)) // 2 < len(some) <= count
        assert torch.equal(some[0], rows[0])
        assert count == 1 or torch.equal(some[-1], rows[-1])
        assert torch.equal(some, data.training_rows(count))


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_splits_are_divided_by_document(settings: dict[str, Any], in_memory: bool) -> None:
    data = ready(**settings, in_memory=in_memory)
    for spec in (data.train_spec, data.validation_spec):
        rows = data._open(spec)
        assert (rows.identity == data.cache_identity) == (spec.split == "train")
        documents = {rows.context(row).document for row in range(rows.rows)}
        assert documents
        assert {split_of(document, 0.25, 0) for document in documents} == {spec.split}


def test_row_limits_hold_for_each_split(settings: dict[str, Any]) -> None:
    data = ready(**settings, train_tokens=200, validation_tokens=40)
    assert (len(all_rows(data)), len(all_rows(data, "validation"))) == (192, 32)
    assert len(all_rows(ready(**settings, in_memory=True, train_tokens=37))) == 37


def test_measuring_a_checkpoint_takes_no_training_rows(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    data = ActivationDataModule(**settings | {"cache_dir": tmp_path})
    trainer(tmp_path).validate(Recorder(), data, verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == [data.validation_spec.key.digest[:16]]


def test_no_batch_size_is_all_rows_in_order_and_no_validation_fraction_the_training_rows(
    settings: dict[str, Any],
) -> None:
    data = ready(**settings | {"validation_fraction": 0})
    assert torch.equal(torch.cat(list(data.val_dataloader())), all_rows(data))
    data = ready(**settings | {"batch_size": None})
    (batch,) = data.train_dataloader()
    assert torch.equal(batch, all_rows(data))
    (batch,) = data.val_dataloader()
    assert torch.equal(batch, all_rows(data, "validation"))


@pytest.mark.parametrize("batch_size", [16, None])
def test_ranks_share_the_rows(settings: dict[str, Any], batch_size: int | None) -> None:
    parts: dict[str, list[list[torch.Tensor]]] = {"train": [], "validation": []}
    for rank in range(2):
        data = ActivationDataModule(**settings | {"batch_size": batch_size})
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            distributed_sampler_kwargs={"rank": rank, "num_replicas": 2},
            overfit_batches=0.0,
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        data.prepare_data()
        data.setup("fit")
        parts["train"].append(list(data.train_dataloader()))
        parts["validation"].append(list(data.val_dataloader()))

    single = ready(**settings | {"batch_size": None if batch_size is None else 2 * batch_size})
    for split, loader in (
        ("train", single.train_dataloader()),
        ("validation", single.val_dataloader()),
    ):
        together = [torch.cat(pair) for pair in zip(*parts[split], strict=True)]
        whole = list(loader)
        assert len(together) == len(whole)
        for mine, theirs in zip(together, whole, strict=True):
            assert torch.equal(mine, theirs[: len(mine)])
            assert len(theirs) - len(mine) in ((0, 1) if split == "train" else (0,))


def test_teardown_ends_the_loaders(settings: dict[str, Any]) -> None:
    data = ready(**settings)
    batches = iter(data.train_dataloader())
    next(batches)
    data.teardown("fit")
    assert len(list(batches)) < len(data.train_dataloader()) - 1


@pytest.mark.parametrize(
    ("site", "width", "target", "target_width"),
    [
        (SITE, WIDTH, TARGET, TARGET_WIDTH),
        ("blocks.1.attn.z.1", HEAD_WIDTH, "blocks.1.attn.result.1", TARGET_WIDTH),
        ("blocks.1.resid_mid", TARGET_WIDTH, "blocks.1.mlp.write", TARGET_WIDTH),
    ],
)
def test_a_row_is_what_one_pass_reads_at_both_sites(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: LanguageModel,
    site: str, width: int, target: str, target_width: int,
) -> None:  # fmt: skip
    passes = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda **given: passes.append(1) or forward(**given)
    )
    settings |= {"site": site, "target_site": target, "dtype": "float32", "cache_dir": tmp_path}
    data = ready(**settings, harvest_batch_size=1_000)
    assert len(passes) == 2  # one for each split
    assert (data.width, data.target_width) == (width, target_width)
    assert next(iter(data.train_dataloader())).shape == (64, width + target_width)
    data.teardown("fit")
    cache = data._open(data.train_spec)
    for row in (0, cache.rows - 1):
        context = cache.context(row)
        ids = torch.from_numpy(context.tokens.astype(np.int64))[None]
        read = model.read_contexts(ids, [site, target])
        expected = torch.cat([read[site], read[target]], dim=-1)[0, context.offset]
        torch.testing.assert_close(cache.read_rows(row, row + 1)[0], expected, atol=1e-5, rtol=1e-5)


def test_both_sites_name_the_cache_and_the_checkpoint(settings: dict[str, Any]) -> None:
    found = [
        ActivationDataModule(**settings, target_site=target)
        for target in (TARGET, "blocks.2.mlp.out", None)
    ]
    assert len({data.cache_identity for data in found}) == 3
    assert found[0].train_spec.key.settings["target_site"] == TARGET
    sources = [{k: v for k, v in data.source.items() if k != "language_model"} for data in found]
    assert sources[0] == {"site": SITE, "target_site": TARGET, "bos": False}
    assert sources[2] == {"site": SITE, "bos": False}
    assert (found[2].width, found[2].target_width) == (WIDTH, None)
    assert found[2].target_statistics is None


def test_keys_never_change() -> None:
    passage: dict[str, Any] = {"corpus": Passage("A passage."), "context_length": 16}
    for in_memory, key in ((False, KEY), (True, KEY_IN_MEMORY)):
        data = ActivationDataModule(site=SITE, train_tokens=32, in_memory=in_memory, **passage)
        assert data.cache_identity == key


@pytest.mark.parametrize("target_site", [None, TARGET])
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("center", "unit_norm"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_statistics_are_those_of_all_training_rows_for_each_site(
    settings: dict[str, Any],
    center: bool,
    unit_norm: bool,
    in_memory: bool,
    target_site: str | None,
) -> None:
    settings |= {"center": center, "unit_norm": unit_norm, "in_memory": in_memory}
    data = ready(**settings, target_site=target_site)
    rows = all_rows(data).double().numpy()
    sites = [(rows[:, :WIDTH], data.input_statistics)]
    if target_site is not None:
        assert data.target_statistics is not None
        sites.append((rows[:, WIDTH:], data.target_statistics))
    for part, found in sites:
        mean = part.mean(axis=0) if center else np.zeros(part.shape[1])
        assert found.mean.dtype == np.float64
        np.testing.assert_allclose(found.mean, mean, rtol=1e-9, atol=1e-12)
        norm = np.linalg.norm(part - mean, axis=1).mean() if unit_norm else 1.0
        assert found.scale == pytest.approx(1 / norm, rel=1e-6)


def test_rows_that_are_all_equal_cannot_be_scaled(settings: dict[str, Any]) -> None:
    data = ready(
        **settings | {"corpus": Passage("and"), "validation_fraction": 0, "in_memory": True},
        center=True,
        unit_norm=True,
    )
    with pytest.raises(InputError, match="1 training rows are equal"):
        _ = data.input_statistics


@pytest.mark.parametrize(
    ("length", "bos", "skip_first"),
    [(128, False, False), (12, False, False), (12, True, False), (12, True, True)],
)
def test_a_text_is_read_unrounded_and_cut_only_where_it_is_longer_than_a_context(
    settings: dict[str, Any], model: LanguageModel, length: int, bos: bool, skip_first: bool
) -> None:
    settings |= {"corpus": Passage(TEXT), "context_length": length, "validation_fraction": 0}
    data = ready(**settings, in_memory=True, bos=bos, skip_first=skip_first)
    tokens = model.tokenizer(TEXT)["input_ids"]
    content = length - bos
    assert len(tokens) % content
    expected, positions = [], []
    for start in range(0, len(tokens), content):
        piece = [model.tokenizer.bos_token_id] * bos + tokens[start : start + content]
        read = model.read(torch.tensor([piece]), [SITE])[SITE][0]
        expected.append(read[skip_first:])
        positions += [*[-1] * bos, *range(start, start + len(piece) - bos)][skip_first:]
    rows = data._open(data.train_spec)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(all_rows(data), torch.cat(expected), atol=1e-5, rtol=1e-4)
    places = [rows.context(row) for row in range(rows.rows)]
    assert [place.position for place in places] == positions
    assert {place.document for place in places} == {0}
    assert all(
        place.tokens[place.offset] == tokens[place.position]
        for place in places
        if place.position >= 0
    )


def test_nothing_is_written_harvested_or_verified_in_memory(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    data = ready(**settings | {"cache_dir": tmp_path / "none"}, in_memory=True)
    list(data.train_dataloader())
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="in_memory is true, so nothing is harvested"):
        data.harvest()
    with pytest.raises(InputError, match="in_memory is true, so nothing can be verified"):
        data.verify()


def test_every_stage_and_a_checkpoint(settings: dict[str, Any], tmp_path: Path) -> None:
    data = ActivationDataModule(**settings)
    module = Recorder()
    fit = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0)
    fit.fit(module, data)
    batches = len(all_rows(data)) // 64
    assert len(module.training_batches) == 2 * batches
    first, second = (
        torch.cat(module.training_batches[epoch * batches : (epoch + 1) * batches])
        for epoch in range(2)
    )
    assert not torch.equal(first, second)
    expected = all_rows(data, "validation")
    assert len(expected) % 64
    assert torch.equal(torch.cat(module.validation_batches)[-len(expected) :], expected)
    fit.test(module, data, verbose=False)
    assert torch.equal(torch.cat(module.validation_batches)[-len(expected) :], expected)
    assert torch.equal(torch.cat(fit.predict(module, data)), expected)  # type: ignore[arg-type]

    fit.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"]["language_model"]["name"] == "mini"
    again = ActivationDataModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.cache_identity == data.cache_identity
    assert (again.batch_size, again.cache_dir) == (data.batch_size, data.cache_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"validation_fraction": 0.6}, "validation_fraction is 0.6; expected 0 to 0.5"),
        ({"validation_fraction": 0, "validation_tokens": 5}, "validation_tokens is given"),
        ({"site": "blocks.1.mlp.prae"}, "did you mean 'blocks.1.mlp.pre'"),
        ({"language_model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"context_length": 1, "skip_first": True}, "expected at least 2"),
        ({"context_length": 1, "bos": True}, "context_length is 1; expected at least 2"),
        ({"harvest_batch_size": 0}, "harvest_batch_size is 0"),
        ({"train_tokens": 3}, "3 rows are less"),
        ({"target_site": SITE}, "is the site itself"),
        ({"target_site": "blocks.1.mlp.outs"}, r"no site 'blocks\.1\.mlp\.outs'"),
    ],
)
def test_bad_arguments_are_rejected_at_once(
    settings: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        ActivationDataModule(**settings | change)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_empty_split_is_rejected_before_the_other_is_harvested(
    tmp_path: Path, in_memory: bool
) -> None:
    with pytest.raises(InputError, match="no document is left for the validation split"):
        ready(
            language_model=CPU,
            corpus=Passage(TEXT * 5),
            context_length=8,
            in_memory=in_memory,
            cache_dir=tmp_path / "caches",
        )
    assert not (tmp_path / "caches").exists()


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_damage_is_noticed_by_every_run_or_by_the_harvest_of_a_large_cache(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings |= {"cache_dir": tmp_path}
    data = ready(**settings)
    shard = data.train_spec.key.folder(tmp_path) / "shard-00000.safetensors"
    flip(shard, -2)
    with pytest.raises(InputError, match="checksum"):
        ready(**settings)
    monkeypatch.setattr(DATAMODULE, "MAX_VERIFIED_BYTES", shard.stat().st_size - 1)
    ready(**settings)
    with pytest.raises(InputError, match="checksum"):
        ActivationDataModule(**settings).harvest()
    assert len(list(data.train_dataloader()))


def test_verifying_reads_both_splits_and_harvests_nothing(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings |= {"cache_dir": tmp_path}
    data = ActivationDataModule(**settings)
    specs = (data.train_spec, data.validation_spec)
    with pytest.raises(
        InputError, match=r"train split: .*no finished .*; harvest it first · validation split: "
    ):
        data.verify()
    assert not list(tmp_path.iterdir())
    ready(**settings)
    no_weights(monkeypatch)
    assert [cache.identity for cache in data.verify()] == [spec.key.digest for spec in specs]
    for spec in specs:
        flip(spec.key.folder(tmp_path) / "shard-00000.safetensors", 2000)
    with pytest.raises(InputError) as raised:
        data.verify()
    for spec in specs:
        shard = spec.key.folder(tmp_path) / "shard-00000.safetensors"
        assert f"{spec.split} split: {shard}: the checksum does not match" in str(raised.value)


@pytest.mark.parametrize("lose", [Path.unlink, lambda shard: os.truncate(shard, 1000)])
def test_a_file_that_is_lost_while_training_ends_the_run_in_one_line(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Any
) -> None:
    monkeypatch.setattr(HARVEST, "WINDOW_ROWS", 128)
    # Each shard is opened anew, as it is in a cache of more shards than files may be open.
    monkeypatch.setattr(READING, "_MAX_OPEN", 1)
    data = ActivationDataModule(**settings | {"cache_dir": tmp_path / "caches", "batch_size": 16})

    class Losing(Recorder):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            if batch_idx == 3:
                for shard in data.train_spec.key.folder(data.cache_dir).glob("*.safetensors"):
                    lose(shard)
            return super().training_step(batch, batch_idx)

    module = Losing()
    with pytest.raises(InputError, match=r"shard-0000\d\.safetensors: ") as raised:
        trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, data)
    assert "\n" not in str(raised.value)
    assert len(module.training_batches) >= 4
