"""Mistyped and torn files: readers raise a one-line `InputError`, or read what the file says."""

import functools
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from palinka.__main__ import main
from palinka.analyses.stimuli import load_stimuli
from palinka.assets import mini_gpt2_folder
from palinka.autoencoders import Autoencoder, KSparseAutoencoder
from palinka.autoencoders.formats import Provenance, load, write
from palinka.data import Cache
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec
from palinka.training import SparseAutoencoderModule
from palinka.training.checkpoint import describe

STIMULI: dict[str, dict[str, Any]] = {
    "contrast": {
        "targets": {"him": "him", "her": "her"},
        "frames": [f"Then {name} saw {{target}} there." for name in ("John", "Anne", "Mary")],
    },
    "words": {"conditions": {"animals": ["horse", "dog", "bird"], "food": ["soup", "x", "tea"]}},
    "carrier": {"groups": {"a": ["house", "river", "road"]}, "carrier": "We saw the {word}"},
    "occurrences": {
        "text": "Vienna, he said, is 3.5 miles, not far. " * 6,
        "conditions": {"comma": {"match": [","], "not_in_numbers": True}}, "before": 2, "after": 1,
    },
    "passage": {"text": "From Vienna to Budapest.", "categories": {"cities": ["Vienna"]}},
}  # fmt: skip
OTHER_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10_000), st.floats(-2.0, 2.0),
    st.sampled_from(["", "none", "him", "{target}", "1e-4"]),
    st.sampled_from([[], {}, ["a", "b"]]).map(deepcopy),
)  # fmt: skip


examples = functools.partial(
    settings, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
)


@st.composite
def mistyped(draw: st.DrawFn, content: Any) -> Any:
    """A copy in which one value is missing, renamed or of another type."""
    content = deepcopy(content)
    places, waiting = [], [content]
    for within in waiting:
        keys = list(within) if isinstance(within, dict) else range(len(within))
        places += [(within, key) for key in keys]
        waiting += [within[key] for key in keys if isinstance(within[key], dict | list)]
    within, key = draw(st.sampled_from(places))
    change = draw(st.sampled_from(["replace", "remove", "rename"]))
    if change == "replace" or isinstance(within, list):
        within[key] = draw(OTHER_VALUES)
    elif change == "remove":
        del within[key]
    else:
        within[f"{key}s"] = within.pop(key)
    return content


@st.composite
def torn(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes cut short, or with one of them changed."""
    place = draw(st.integers(0, len(data) - 1))
    if draw(st.booleans()):
        return data[:place]
    return data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]


Files = dict[str, tuple[Path, Callable[[], Any]]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Files of each kind, and what reads them."""
    folder = tmp_path_factory.mktemp("files")
    own, foreign, model = (folder / name for name in ("own", "foreign", "model"))
    autoencoder = KSparseAutoencoder(6, 10, 3)
    autoencoder.save_pretrained(own)
    write(autoencoder, Provenance(site="blocks.3.mlp.pre"), "saelens", foreign)
    model.mkdir()
    shutil.copy(mini_gpt2_folder() / "config.json", model)
    module = SparseAutoencoderModule(autoencoder, 0.5)
    checkpoint = {
        "epoch": 1, "global_step": 7, "pytorch-lightning_version": "2.6.1",
        "state_dict": dict(module.state_dict()), "source": {"site": "blocks.3.mlp.pre"},
        "hyper_parameters": {**module.hparams, "autoencoder": describe(module.autoencoder)},
    }  # fmt: skip
    torch.save(checkpoint, folder / "last.ckpt")
    caches = ["--data.context_length=32", f"--data.cache_dir={folder / 'caches'}"]
    tokens = ["--data.train_tokens=512", "--data.validation_tokens=128", "--data.batch_size=64"]
    assert main(["harvest", *caches, *tokens]) == 0
    manifest = min((folder / "caches").rglob("manifest.json"))

    tokenizer = AutoTokenizer.from_pretrained(mini_gpt2_folder())
    load_module = SparseAutoencoderModule.load_from_checkpoint
    cache = manifest.parent
    found: Files = {
        "weights": (own / "model.safetensors", lambda: Autoencoder.from_pretrained(own)),
        "autoencoder": (own / "config.json", lambda: Autoencoder.from_pretrained(own)),
        "dictionary": (foreign / "cfg.json", lambda: load(foreign)),
        "checkpoint": (folder / "last.ckpt", lambda: load_module(folder / "last.ckpt")),
        "model": (
            model / "config.json",
            lambda: LanguageModelSpec(str(model)).sites.width("blocks.0.mlp.pre"),
        ),
        "manifest": (manifest, lambda: Cache.open(cache).verify()),
        "shard": (min(cache.glob("*.safetensors")), lambda: Cache.open(cache).verify()),
    }
    for kind, content in STIMULI.items():
        path = folder / f"{kind}.yaml"
        path.write_text(yaml.safe_dump({"kind": kind, **content}))
        found[kind] = (path, lambda path=path: load_stimuli(path).prepare(tokenizer))
    return found


@pytest.mark.parametrize("kind", [*STIMULI, "autoencoder", "dictionary", "checkpoint", "model"])
@examples(max_examples=25)
@given(data=st.data())
def test_a_mistyped_file(kind: str, files: Files, data: st.DataObject) -> None:
    file, read = files[kind]
    whole = file.read_bytes()
    if file.suffix == ".ckpt":
        torch.save(data.draw(mistyped(torch.load(file, weights_only=True))), file)
    else:  # JSON is YAML
        file.write_text(json.dumps(data.draw(mistyped(yaml.safe_load(whole)))))
    with suppress(InputError):
        read()
    file.write_bytes(whole)


@pytest.mark.parametrize("kind", ["words", "weights", "checkpoint", "manifest", "shard"])
@examples(max_examples=30)
@given(data=st.data())
def test_a_torn_file(kind: str, files: Files, data: st.DataObject) -> None:
    file, read = files[kind]
    whole = file.read_bytes()
    file.write_bytes(data.draw(torn(whole)))
    # Only the rows have checksums: another number elsewhere may be read.
    with pytest.raises(InputError) if kind == "shard" else suppress(InputError):
        read()
    file.write_bytes(whole)
