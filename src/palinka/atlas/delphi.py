import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from palinka.atlas.exports import Source
from palinka.atlas.text import GROUP_TOKENS, encode_contexts
from palinka.data import ActivationDataModule
from palinka.errors import InputError, track
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.base import evaluating

SPLITS = 5  # files, as many as delphi writes by default
EXAMPLE_TOKENS = 32  # of which contexts must be a multiple
LEAST, MOST = 1e-5, float(np.finfo(np.float16).max)  # magnitudes that are written


def write_delphi(
    folder: Path, data: ActivationDataModule, module: SparseAutoencoderModule, source: Source,
    name: str, explanations: Mapping[int, str],
) -> list[str]:  # fmt: skip
    """Write delphi's cache of the latents of a Hugging Face module `name`; return notes.

    Contexts are cut to a multiple of 32 tokens, and shorter ones are left out. delphi can neither
    write nor read a range of latents of which none is active: it is merged with a neighbor.

    Source:
        `LatentCache.save_splits` and `TensorBuffer.load` of delphi 0.1.3.
    """
    spec = data.validation_spec
    length = spec.context_length // EXAMPLE_TOKENS * EXAMPLE_TOKENS
    contexts = [context.tokens for context in data.validation_contexts()]
    whole = [tokens[:length] for tokens in contexts if len(tokens) >= length > 0]
    if not whole:
        fault = f"export delphi: no context has {max(length, EXAMPLE_TOKENS)} tokens"
        raise InputError(f"{fault}; give another --data.context_length")
    tokens = np.stack(whole).astype(np.int64)
    places, values = [], []
    count = max(1, GROUP_TOKENS // length)
    with evaluating(module):
        for start in track(range(0, len(tokens), count), "encoding contexts"):
            latents = encode_contexts(data, module, tokens[start : start + count])
            token, latent = np.nonzero(np.abs(latents) > LEAST)
            place = np.stack([token // length + start, token % length, latent], axis=1)
            places.append(place.astype(np.uint32))
            values.append(latents[token, latent])
    locations, activations = np.concatenate(places), np.concatenate(values)
    if not len(activations):
        raise InputError("no latent is active on the validation text; give more of it")
    if (most := float(np.abs(activations).max())) > MOST:
        fault = f"export delphi: an activation of {most:,.0f} does not fit float16"
        raise InputError(f"{fault}; scale the dictionary")
    known = module.autoencoder.latent_dim
    cache = folder / "latents" / name
    cache.mkdir(parents=True)
    seen = np.unique(locations[:, 2])
    # Starts of the ranges, the first of all and then each with an active latent before its end.
    edges = np.linspace(0, known, SPLITS + 1).astype(int)
    edges = edges[np.unique(np.searchsorted(edges, seen, side="right") - 1)]
    for first, stop in zip([0, *edges[1:]], [*edges[1:], known], strict=True):
        own = (first <= locations[:, 2]) & (locations[:, 2] < stop)
        part = locations[own] - np.array([0, 0, first], dtype=np.uint32)
        tensors = {
            "locations": part.astype(np.uint16) if part.max() < 1 << 16 else part,
            "activations": activations[own].astype(np.float16), "tokens": tokens,
        }  # fmt: skip
        (cache / f"{first}_{stop - 1}.safetensors").write_bytes(save(tensors))
    config = {
        "dataset_repo": source.dataset, "dataset_split": getattr(spec.corpus, "split", ""),
        "dataset_name": getattr(spec.corpus, "name", None) or "",
        "dataset_column": getattr(spec.corpus, "text_field", "text"), "batch_size": count,
        "cache_ctx_len": length, "n_tokens": tokens.size, "n_splits": len(edges),
        "model_name": spec.language_model.portable_name,
    }  # fmt: skip
    (cache / "config.json").write_text(json.dumps(config, indent=4))
    (folder / "explanations").mkdir()
    for number, text in explanations.items():
        (folder / "explanations" / f"{name}_latent{number}.txt").write_text(json.dumps(text))
    notes = []
    if short := len(contexts) - len(whole):
        counts = f"{short:,} of {len(contexts):,} left out"
        notes.append(f"export delphi: contexts of unequal length; {counts}")
    if negative := int((activations < 0).sum()):
        notes.append(f"export delphi: {negative:,} activations are below 0; delphi ignores them")
    return notes
