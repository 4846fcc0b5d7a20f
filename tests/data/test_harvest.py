"""Harvesting: the right rows, the same bytes after every accident, nothing half-written."""

import functools
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from palinka.data import (
    BundledSample,
    Cache,
    CacheWriter,
    Corpus,
    Document,
    HarvestSpec,
    Passage,
    harvest,
    split_of,
)
from palinka.data.format import JSON
from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec

SITE = "blocks.1.mlp.pre"
CPU = LanguageModelSpec("mini", device="cpu")
END_OF_TEXT = 0
# The function `harvest` hides the module of that name.
HARVEST = importlib.import_module("palinka.data.harvest")


class Numbered(Corpus):
    """Documents of tokens of the mini model, of uneven length."""

    def __init__(self, documents: int = 16) -> None:
        self.count = documents

    def tokens(self, document: int) -> np.ndarray:
        return np.random.default_rng(document).integers(1, 8000, size=20 + 7 * document % 60)

    def documents(self) -> Iterator[Document]:
        for index in range(self.count):
            yield self.tokens(index)

    def fingerprint(self) -> dict[str, JSON]:
        return {"kind": "numbered", "documents": self.count}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(CPU)


@pytest.fixture
def load(model: LanguageModel) -> Callable[[], LanguageModel]:
    return lambda: model


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> HarvestSpec:
    """Windows of 4 blocks, batches of 3: the training split has several shards of two batches."""
    monkeypatch.setattr(HARVEST, "WINDOW_ROWS", 64)
    return HarvestSpec(
        language_model=CPU,
        site=SITE,
        corpus=Numbered(),
        context_length=16,
        validation_fraction=0.25,
        batch_contexts=3,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Watched:
    """Loads a model that counts its forward passes, and does something before and after each."""

    def __init__(
        self,
        model: LanguageModel,
        before: Callable[[int], Any] = lambda _: None,
        after: Callable[[int, torch.Tensor], Any] = lambda *_: None,
    ) -> None:
        self.model = model
        self.spec, self.context_length = model.spec, model.context_length
        self.before, self.after = before, after
        self.passes = 0

    def __call__(self) -> Any:
        return self

    def read_contexts(self, ids: torch.Tensor, sites: list[str]) -> dict[str, torch.Tensor]:
        self.before(self.passes)
        self.passes += 1
        found = self.model.read_contexts(ids, sites)
        self.after(self.passes, found[sites[0]])
        return found


@pytest.mark.parametrize(
    ("bos", "skip_first", "split"),
    [
        (False, False, "train"),
        (False, False, "validation"),
        (True, False, "train"),
        (False, True, "train"),
        (True, True, "validation"),
    ],
)
def test_rows_are_what_the_model_computes_at_their_place(
    spec: HarvestSpec,
    model: LanguageModel,
    load: Callable[[], LanguageModel],
    tmp_path: Path,
    bos: bool,
    skip_first: bool,
    split: Any,
) -> None:
    spec = replace(spec, bos=bos, skip_first=skip_first, split=split, dtype="float32")
    cache = harvest(spec, tmp_path, load=load)
    rows = cache.read_rows(0, cache.rows)
    assert cache.rows == len(list(cache.contexts())) * (16 - skip_first)
    assert cache.rows == len(list(spec.contexts())) * (16 - skip_first)

    @functools.cache
    def alone(block: bytes) -> torch.Tensor:
        tokens = np.frombuffer(block, np.int32).astype(np.int64)
        return model.read(torch.from_numpy(tokens[None]), [SITE])[SITE][0]

    places = set()
    for index, row in enumerate(rows):
        place = cache.context(index)
        block = place.tokens.tobytes()
        places.add((block, place.offset))
        torch.testing.assert_close(row, alone(block)[place.offset], atol=1e-5, rtol=1e-4)

        document = [*Numbered().tokens(place.document), END_OF_TEXT]
        token = place.tokens[place.offset]
        assert token == (END_OF_TEXT if place.position == -1 else document[place.position])
        assert (place.position == -1) == (bos and place.offset == 0)
        assert split_of(place.document, 0.25, 0) == split
    assert len(places) == cache.rows
    assert {offset for _, offset in places} == set(range(int(skip_first), 16))


def test_a_row_limit_keeps_the_first_contexts(
    spec: HarvestSpec, load: Callable[[], LanguageModel], tmp_path: Path
) -> None:
    contexts = list(spec.contexts())
    assert harvest(replace(spec, max_rows=10**6), tmp_path, load=load).rows == 16 * len(contexts)
    cache = harvest(replace(spec, max_rows=100), tmp_path, load=load)
    assert cache.rows == 96
    given = np.concatenate([context.tokens for context in contexts[:6]])
    stored = [cache.context(row) for row in range(96)]
    assert sorted(given) == sorted(place.tokens[place.offset] for place in stored)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_an_interrupted_harvest_goes_on_to_the_same_bytes(
    spec: HarvestSpec, model: LanguageModel, tmp_path: Path, after: int
) -> None:
    whole = Watched(model)
    expected = contents(harvest(spec, tmp_path / "whole", load=whole).folder)

    def interrupt(passes: int) -> None:
        if passes == after:
            raise KeyboardInterrupt

    interrupted = Watched(model, interrupt)
    with pytest.raises(KeyboardInterrupt):
        harvest(spec, tmp_path / "resumed", load=interrupted)
    assert not Cache.exists(spec.key.folder(tmp_path / "resumed"))
    rest = Watched(model)
    cache = harvest(spec, tmp_path / "resumed", load=rest)
    assert contents(cache.folder) == expected
    # Whole shards, of two passes each, are not read again.
    assert rest.passes == whole.passes - after + after % 2


def test_a_finished_cache_is_opened_without_the_model(
    spec: HarvestSpec, load: Callable[[], LanguageModel], tmp_path: Path
) -> None:
    def refuse() -> LanguageModel:
        raise AssertionError("the weights were loaded")

    first = harvest(spec, tmp_path, load=load)
    assert harvest(spec, tmp_path, load=refuse).identity == first.identity
    # So is a finished one that nobody may write to.
    for path in first.folder.iterdir():
        path.chmod(0o444)
    first.folder.chmod(0o555)
    assert harvest(spec, tmp_path, load=refuse).rows == first.rows


def test_one_of_two_processes_is_killed_and_both_go_on_to_the_bytes_of_one(
    spec: HarvestSpec, load: Callable[[], LanguageModel], tmp_path: Path
) -> None:
    expected = contents(harvest(spec, tmp_path / "one", load=load).folder)

    def kill(passes: int) -> None:
        if passes == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def rank_of_two(rank: int, attempt: int) -> int:
        """A process that harvests as one of two, which wait for each other through gloo."""
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{tmp_path}/{attempt}", rank=rank, world_size=2
            )
            harvest(
                spec,
                tmp_path / "two",
                rank=rank,
                world_size=2,
                barrier=torch.distributed.barrier,
                load=Watched(load(), kill) if (rank, attempt) == (1, 0) else load,
            )
            status = 0
        finally:
            os._exit(status)

    ends = []
    for attempt in range(2):
        children = [rank_of_two(rank, attempt) for rank in range(2)]
        ends.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        if attempt == 0:
            folder = spec.key.folder(tmp_path / "two")
            assert not Cache.exists(folder)
            # Of the dead process one shard, of the other all of its own.
            written = sorted(path.name for path in folder.glob("shard-*.safetensors"))
            shards = len(expected) - 1
            assert written == [
                f"shard-{i:05d}.safetensors" for i in range(shards) if i in (0, 1) or i % 2 == 0
            ]
    assert ends == [[1, -signal.SIGKILL], [0, 0]]
    assert contents(spec.key.folder(tmp_path / "two")) == expected


def test_two_runs_at_once_share_the_work(
    spec: HarvestSpec,
    load: Callable[[], LanguageModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = contents(harvest(spec, tmp_path / "alone", load=load).folder)
    waited = threading.Event()
    monkeypatch.setattr(
        HARVEST.time, "sleep", lambda _: waited.set() or threading.Event().wait(0.01)
    )
    writer = CacheWriter(tmp_path / "shared", spec.key)
    found: list[Cache] = []
    with writer.claim(0) as mine:  # another run is busy with the first shard, and dies
        assert mine
        thread = threading.Thread(
            target=lambda: found.append(harvest(spec, tmp_path / "shared", load=load))
        )
        thread.start()
        assert waited.wait(60)
        assert writer.done(1)
        assert not found
    thread.join()
    assert contents(found[0].folder) == expected


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "float32", r"blocks\.1\.mlp\.pre are NaN"),
        (float("inf"), "float32", r"blocks\.1\.mlp\.pre are NaN or infinite"),
        (1e5, "float16", r"blocks\.1\.mlp\.pre go up to 1e\+05, .*bfloat16 or float32"),
        (1e5, "bfloat16", None),
    ],
)
def test_rows_that_cannot_be_stored_are_rejected(
    spec: HarvestSpec, model: LanguageModel, tmp_path: Path, value: float, dtype: str, message: str
) -> None:
    def change(passes: int, activations: torch.Tensor) -> None:
        if passes == 4:
            activations[-1, -1, 5] = value

    changed, spec = Watched(model, after=change), replace(spec, dtype=dtype)
    if message is None:
        cache = harvest(spec, tmp_path, load=changed)
        assert cache.read_rows(0, cache.rows).max() > 0.99e5
        return
    with pytest.raises(InputError, match=message) as raised:
        harvest(spec, tmp_path, load=changed)
    assert "\n" not in str(raised.value)
    # The shard before is whole and stays; of the broken one nothing is left.
    left = sorted(path.name for path in spec.key.folder(tmp_path).iterdir())
    assert left == ["harvest.json", "shard-00000.json", "shard-00000.safetensors"]


def test_a_harvest_that_fails_before_its_first_shard_leaves_nothing(
    spec: HarvestSpec, load: Callable[[], LanguageModel], tmp_path: Path
) -> None:
    def fail() -> LanguageModel:
        raise InputError("no such model")

    writer = CacheWriter(tmp_path, spec.key)
    with pytest.raises(InputError, match="no such model"):
        harvest(spec, tmp_path, load=fail)
    assert not writer.folder.exists()
    with writer.claim(1), pytest.raises(InputError, match="no such model"):  # by another run
        harvest(spec, tmp_path, load=fail)
    assert [path.name for path in writer.folder.iterdir()] == ["harvest.json"]


def test_whatever_determines_the_rows_and_nothing_else_has_an_address_of_its_own(
    spec: HarvestSpec,
) -> None:
    changes: dict[str, Any] = {
        "site": "blocks.2.mlp.pre", "language_model": LanguageModelSpec("mini", dtype="bfloat16"),
        "corpus": Numbered(25), "split": "validation", "context_length": 8, "seed": 1,
        "validation_fraction": 0.2, "bos": True, "skip_first": True, "max_rows": 64,
        "dtype": "float32",
    }  # fmt: skip
    others = {replace(spec, **{name: value}).key.digest for name, value in changes.items()}
    assert len(others | {spec.key.digest}) == len(changes) + 1
    same = replace(
        spec, batch_contexts=None, language_model=LanguageModelSpec("mini", device="auto")
    )
    assert same.key.digest == spec.key.digest
    middle = replace(spec, site="blocks.middle.mlp.pre")
    assert middle.key.digest == replace(spec, site="blocks.3.mlp.pre").key.digest


def test_a_window_is_bounded_by_rows_and_by_bytes(
    spec: HarvestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spec.layout.contexts_per_shard == 4
    monkeypatch.setattr(HARVEST, "WINDOW_BYTES", 2 * 16 * 512 * 2)
    assert replace(spec, seed=1).layout.contexts_per_shard == 2
    assert replace(spec, dtype="float32").layout.contexts_per_shard == 1
    monkeypatch.undo()
    assert replace(spec, seed=2).layout.contexts_per_shard == 262_144 // 16


def test_contexts_beyond_the_model_are_rejected(
    spec: HarvestSpec, load: Callable[[], LanguageModel], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"context_length is 300.*at most 256"):
        harvest(replace(spec, context_length=300), tmp_path, load=load)


def test_contexts_have_the_tokenizers_own_bos_and_need_its_special_tokens(
    spec: HarvestSpec, other_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModelSpec, "tokenizer", lambda _: other_tokenizer)
    alone = replace(spec, corpus=Passage("Some words."), validation_fraction=0, context_length=8)
    first = next(replace(alone, bos=True).contexts())
    assert first.tokens[0] == other_tokenizer.bos_token_id != other_tokenizer.eos_token_id
    assert other_tokenizer.decode(first.tokens[1:]) == "Some wo"
    other_tokenizer.bos_token = None
    assert list(alone.contexts())
    with pytest.raises(InputError, match=r"no bos_token .*; set bos to false"):
        replace(alone, bos=True).contexts()
    other_tokenizer.eos_token = None
    with pytest.raises(InputError, match="no eos_token to set between documents"):
        alone.contexts()


def test_the_bundled_sample_is_harvested_with_the_model_of_the_spec(tmp_path: Path) -> None:
    spec = HarvestSpec(CPU, "hidden.1", BundledSample(), max_rows=300)
    last = next(spec.contexts())
    assert spec.tokens(128, last) == 256
    whole = replace(spec, max_rows=None).tokens(128, last)
    assert whole is not None
    assert replace(spec, max_rows=20_000_000).tokens(128, last) == whole
    # Its last token is of the sixth document of all.
    last.documents[-1] = 5
    assert (
        replace(spec, max_rows=None).tokens(128, last)
        == 128 * BundledSample().document_count() // 6
    )
    cache = harvest(spec, tmp_path)
    assert (cache.rows, cache.width, cache.dtype) == (256, 128, torch.float16)


def test_what_a_kill_left_in_a_finished_cache_goes_with_the_next_harvest(
    spec: HarvestSpec, load: Callable[[], LanguageModel], tmp_path: Path
) -> None:
    folder = harvest(spec, tmp_path, load=load).folder
    expected = contents(folder)
    for name in ("shard-00000.json", "harvest.json", "manifest.json.tmp"):
        (folder / name).write_text("left between the manifest and the end")
    Cache.open(folder).verify()
    harvest(spec, tmp_path, load=load)
    assert contents(folder) == expected


@pytest.mark.parametrize(("least", "expected"), [(1, "medium"), (10**6, "highest")])
def test_wide_sites_are_read_with_the_better_products_and_torch_is_left_as_it_was(
    spec: HarvestSpec,
    model: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    least: int,
    expected: str,
) -> None:
    seen: set[str] = set()
    watched = Watched(model, lambda _: seen.add(torch.get_float32_matmul_precision()))
    monkeypatch.setattr(HARVEST, "MIN_TRIAL_WIDTH", least)
    monkeypatch.setattr(HARVEST, "select_matmul_backend", lambda: ("medium", "why"))
    assert torch.get_float32_matmul_precision() == "highest"
    harvest(spec, tmp_path, load=watched)
    assert seen == {expected}
    assert torch.get_float32_matmul_precision() == "highest"
