"""Rows of two sites, side by side, for a transcoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palinka.data import ActivationDataModule, Passage, TextFiles
from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec

CPU = LanguageModelSpec("mini", device="cpu")
SITE, TARGET = "blocks.1.mlp.pre", "blocks.1.mlp.out"
WIDTH, TARGET_WIDTH = 512, 128
# A change of these would throw away everybody's caches.
KEY = "21dd91ad7efc765e58a3bfa70e005f123484e31b74b9f5998c03b51352401925"
KEY_IN_MEMORY = "a3dd05a35894b5274bec4ce64df54941aa2bf509d435bb804c488ffe622e5b56"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(CPU)


@pytest.fixture(autouse=True)
def one_load_for_all_tests(monkeypatch: pytest.MonkeyPatch, model: LanguageModel) -> None:
    monkeypatch.setattr(LanguageModel, "load", lambda _: model)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("texts")
    words = np.array(["the", "river", "was", "low", "and", "boats", "lay", "on", "mud", "slack"])
    for index in range(6):
        order = np.random.default_rng(index).integers(len(words), size=60)
        (folder / f"{index}.txt").write_text(" ".join(words[order]))
    return {
        "language_model": CPU,
        "site": SITE,
        "target_site": TARGET,
        "corpus": TextFiles(folder),
        "batch_size": 16,
        "context_length": 16,
        "validation_fraction": 0.5,
        "dtype": "float32",
        "cache_dir": tmp_path_factory.mktemp("caches"),
    }


def ready(**settings: Any) -> ActivationDataModule:
    data = ActivationDataModule(**settings)
    data.prepare_data()
    data.setup("fit")
    return data


def test_a_row_is_what_one_pass_reads_at_both_sites(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: LanguageModel
) -> None:
    passes = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda **given: passes.append(1) or forward(**given)
    )
    data = ready(**settings | {"cache_dir": tmp_path, "harvest_batch_size": 1_000})
    assert len(passes) == 2  # one for each split
    assert (data.width, data.target_width) == (WIDTH, TARGET_WIDTH)
    batch = next(iter(data.train_dataloader()))
    assert batch.shape == (16, WIDTH + TARGET_WIDTH)
    data.teardown("fit")
    cache = data._open(data.train_spec)
    for row in (0, cache.rows - 1):
        context = cache.context(row)
        ids = torch.from_numpy(context.tokens.astype(np.int64))[None]
        read = model.read_contexts(ids, [SITE, TARGET])
        expected = torch.cat([read[SITE], read[TARGET]], dim=-1)[0, context.offset]
        torch.testing.assert_close(cache.read_rows(row, row + 1)[0], expected, atol=1e-5, rtol=1e-5)


def test_both_sites_name_the_cache_and_the_checkpoint(settings: dict[str, Any]) -> None:
    data = ActivationDataModule(**settings)
    other = ActivationDataModule(**settings | {"target_site": "blocks.2.mlp.out"})
    alone = ActivationDataModule(**settings | {"target_site": None})
    assert len({data.cache_identity, other.cache_identity, alone.cache_identity}) == 3
    assert data.train_spec.key.settings["target_site"] == TARGET
    assert {**data.source, "language_model": ""} == {
        "language_model": "",
        "site": SITE,
        "target_site": TARGET,
        "bos": False,
    }


def test_without_a_target_nothing_is_as_it_was_not(settings: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "site": SITE,
        "corpus": Passage("A passage."),
        "context_length": 16,
        "train_tokens": 32,
    }
    data = ActivationDataModule(**arguments)
    assert data.cache_identity == KEY
    assert ActivationDataModule(**arguments, in_memory=True).cache_identity == KEY_IN_MEMORY
    assert (data.width, data.target_width) == (WIDTH, None)
    assert set(data.source) == {"language_model", "site", "bos"}
    alone = ready(**settings | {"target_site": None})
    assert alone.target_statistics is None


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(("center", "unit_norm"), [(True, True), (False, True), (True, False)])
def test_each_site_has_statistics_of_its_own(
    settings: dict[str, Any], in_memory: bool, center: bool, unit_norm: bool
) -> None:
    data = ready(**settings, in_memory=in_memory, center=center, unit_norm=unit_norm)
    rows = data._open(data.train_spec)
    both = rows.read_rows(0, rows.rows).double().numpy()
    parts = np.split(both, [WIDTH], axis=1)
    for part, found in zip(parts, (data.input_statistics, data.target_statistics), strict=True):
        assert found is not None
        mean = part.mean(axis=0) if center else np.zeros(part.shape[1])
        np.testing.assert_allclose(found.mean, mean, atol=1e-6)
        norm = np.linalg.norm(part - mean, axis=1).mean() if unit_norm else 1.0
        assert found.scale == pytest.approx(1 / norm, rel=1e-5)


def test_one_site_twice_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is the site itself"):
        ActivationDataModule(**settings | {"target_site": SITE})


def test_a_target_site_that_is_none_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"no site 'blocks\.1\.mlp\.outs'"):
        ActivationDataModule(**settings | {"target_site": "blocks.1.mlp.outs"})
