"""Latents and their texts in the formats of SAEDashboard, Neuronpedia and delphi."""

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from palinka.analyses.stats.permutation import chunks
from palinka.atlas.facts import LatentFacts, Options, choose_by_rank
from palinka.atlas.text import BEFORE, GROUP_TOKENS, Windows, encode_contexts
from palinka.autoencoders.files import Provenance
from palinka.autoencoders.formats.common import hook_of, site_of_hook
from palinka.data import ActivationDataModule
from palinka.data.corpora import HuggingFaceDataset
from palinka.errors import InputError, track
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.base import evaluating

BATCH = 128  # latents in a file, the most that Neuronpedia takes in a request
TOP, INTERVALS, IN_INTERVAL = 20, 5, 5  # texts, as SAEDashboard has them
OPTIONS = Options(contexts=TOP, quantiles=1, per_quantile=64, sample=64, tokens=10, nearest=10)
CREATOR = "clkht01d40000jv08hvalcvly"  # the user that every Neuronpedia database begins with
MAX_EXPLANATION = 512
STEERED = ("hook_resid_post", "hook_mlp_out", "hook_attn_out")  # where Neuronpedia adds vectors
# Lists that are not measured.
EMPTY = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson",
    "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
)  # fmt: skip
COPIED = (*EMPTY, "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero",
          "freq_hist_data_bar_values", "freq_hist_data_bar_heights")  # fmt: skip
# A text, whose fields have names of ours.
SAEDASHBOARD_TEXT = """{"bin_min": %(low)s, "bin_max": %(high)s, "bin_contains": %(share)s, \
"tokens": [%(tokens)s], "values": [%(values)s], "qualifying_token_index": %(peak)s}"""
NEURONPEDIA_TEXT = """"binMin": %(low)s, "binMax": %(high)s, "binContains": %(share)s, \
"tokens": [%(tokens)s], "values": [%(values)s], "qualifyingTokenIndex": %(peak)s, \
"maxValue": %(most)s, "maxValueTokenIndex": %(place)s, "minValue": %(least)s"""
NULL = ("dataSource", "dataIndex", "dfaTargetIndex", "dfaMaxValue", "logitContributions",
        "zIndices", "zValues")  # fmt: skip
OUT_OF_RANGE = "<|outofrange|>"  # SAEDashboard's text of an id that only pads the vocabulary


@dataclass(frozen=True)
class Source:
    """Names of a dictionary and of its text, as Neuronpedia has them."""

    model: str
    layers: int
    layer: int
    set_name: str
    suffix: str | None
    hook: str | None  # at which its directions can be added
    dataset: str
    contexts: int
    context_length: int

    @property
    def id(self) -> str:
        """Name within the model."""
        return f"{self.layer}-{self.set_name}" + (f"__{self.suffix}" if self.suffix else "")


def describe_source(
    data: ActivationDataModule, latents: int, provenance: Provenance,
    model_id: str | None = None, suffix: str | None = None,
) -> Source:  # fmt: skip
    """Name a dictionary, the site of whose provenance is the one that it writes to."""
    spec = data.validation_spec
    model = model_id or spec.language_model.portable_name.rpartition("/")[2].lower()
    model = model if model_id else re.sub(r"[^a-z0-9_-]", "-", model)
    for option, name in (("model_id", model), ("suffix", suffix or "")):
        if not re.fullmatch("[a-z0-9_-]*", name):
            raise InputError(f"{option} is {name!r}; give lower-case letters, digits, - and _")
    hook, site = provenance.hook, str(provenance.site)
    if hook:  # one name for the site after block 3, which is the one before block 4
        site = site_of_hook(hook) or site
        hook = hook_of(site)
    if (layer := re.search(r"\d+", site)) is None:
        raise InputError(f"the site {site} is of no layer; give a dictionary of a numbered block")
    part = re.sub(r"[^a-z0-9]+", "-", site[layer.end() :].lower()).strip("-")
    corpus = spec.corpus
    return Source(
        model, spec.language_model.sites.layers, int(layer[0]), f"palinka-{part}-{latents}", suffix,
        hook if hook and hook.endswith(STEERED) else None,
        corpus.path if isinstance(corpus, HuggingFaceDataset) and not Path(corpus.path).is_dir()
        else str(provenance.corpus),
        sum(1 for _ in data.validation_contexts()), spec.context_length,
    )  # fmt: skip


def active(facts: LatentFacts) -> NDArray[np.int64]:
    """Latents with a text."""
    found = np.flatnonzero(facts.top.places[:, 0] >= 0)
    if not len(found):
        raise InputError("no latent is active on the validation text; give more of it")
    return found


def batches(
    facts: LatentFacts, directions: NDArray[np.float32], source: Source
) -> Iterator[list[tuple[dict[str, Any], list[dict[str, Any]]]]]:
    """Fields of latents that are active at all and of their texts, one file at a time.

    The texts are those of the top activations, then some from intervals between 0 and the maximum,
    the highest first. `bin_contains` is the share of all tokens in the interval.
    """
    ids = np.array(sorted(facts.vocabulary))
    known = (facts.vocabulary[token].decode(errors="replace") for token in ids.tolist())
    names = np.array([text.replace("\0", " ") or OUT_OF_RANGE for text in known], dtype=object)
    quoted = np.array([json.dumps(name) for name in names], dtype=object)
    effects, latents, histogram = facts.report.effects, active(facts), facts.histogram
    directions = directions if source.hook else directions[:, :0]
    digits = 6 - int(np.ceil(np.log10(np.abs(directions).max(initial=1.0))))
    same = {
        **{name: [] for name in EMPTY}, "n_prompts_total": source.contexts,
        "n_tokens_in_prompt": source.context_length, "dataset": source.dataset,
    }  # fmt: skip
    for some in track([latents[part] for part in chunks(len(latents), BATCH)], "writing latents"):
        windows, bins = _choose(facts, some)
        texts = _write_texts(windows, bins, quoted[np.searchsorted(ids, windows.tokens)])
        heights = histogram.counts[some].reshape(len(some), -1, 2).sum(axis=2)
        bars = heights.shape[1] - (heights > 0)[:, ::-1].argmax(axis=1)
        middles = (2 * np.arange(heights.shape[1]) + 1) * histogram.width[some, None]
        columns = {
            "feature_index": some.tolist(),
            "frac_nonzero": np.round(facts.report.statistics.density[some] / 100, 5).tolist(),
            "freq_hist_data_bar_values": _rounded(middles),
            "freq_hist_data_bar_heights": heights.tolist(),
            "vector": np.round(directions[some].astype(np.float64), digits).tolist(),
        }
        for side, name in (("neg", "lowered"), ("pos", "raised")):
            none = np.empty((len(some), 0), np.int64)
            tokens, by = (effects[f"{name}{x}"][some] if effects else none for x in ("", "_by"))
            columns[f"{side}_str"] = names[np.searchsorted(ids, tokens)].tolist()
            columns[f"{side}_values"] = _rounded(by)
        features = [
            {**same, **dict(zip(columns, fields, strict=True))}
            for fields in zip(*columns.values(), strict=True)
        ]
        for feature, n in zip(features, bars.tolist(), strict=True):
            for name in ("freq_hist_data_bar_values", "freq_hist_data_bar_heights"):
                del feature[name][n:]
        yield list(zip(features, texts, strict=True))


def _write_texts(
    windows: Windows, bins: list[list[dict[str, Any]]], quoted: NDArray[Any]
) -> list[list[dict[str, Any]]]:
    """Fields of the texts of each latent, with tokens and values as JSON."""
    row, column = np.nonzero(windows.places >= 0)
    inside = windows.tokens[row, column] >= 0
    start, length = inside.argmax(axis=1), inside.sum(axis=1)
    values = np.round(windows.activations[row, column].astype(np.float64), 3)
    strings = np.full(values.shape, "0", dtype=object)  # most are
    strings[values != 0] = [repr(value) for value in values[values != 0].tolist()]
    most = np.where(inside, values, -np.inf)
    fields = {
        "peak": BEFORE - start, "most": most.max(axis=1), "place": most.argmax(axis=1) - start,
        "least": np.where(inside, values, np.inf).min(axis=1),
    }  # fmt: skip

    def joined(pieces: NDArray[Any]) -> list[str]:
        both = np.full((len(pieces), 2), ",", dtype=object)
        both[:, 0] = pieces
        both[length.cumsum() - 1, 1] = "\n"
        return "".join(both.ravel().tolist()).split("\n")[:-1]

    columns = [joined(quoted[row, column][inside]), joined(strings[inside])]
    columns += [numbers.tolist() for numbers in fields.values()]
    names, texts = ("tokens", "values", *fields), [list[dict[str, Any]]() for _ in bins]
    group = np.maximum(0, (column - TOP) // IN_INTERVAL + 1)
    for latent, interval, *own in zip(row.tolist(), group.tolist(), *columns, strict=True):
        texts[latent].append({**bins[latent][interval], **dict(zip(names, own, strict=True))})
    return texts


def _rounded(values: NDArray[Any]) -> Any:
    return np.round(values.astype(np.float64), 3).tolist()


def _choose(facts: LatentFacts, some: NDArray[np.int64]) -> tuple[Windows, list[list[Any]]]:
    """Windows of some latents, and the bins of their groups: the top, then the intervals.

    The top activations fill those that a random sample of the active tokens leaves empty.
    """
    top, sample = (Windows(*(array[some] for array in vars(one).values()))
                   for one in (facts.top, facts.bands))  # fmt: skip
    pairs = zip(vars(top).values(), vars(sample).values(), strict=True)
    pool = Windows(*(np.concatenate(pair, axis=1) for pair in pairs))
    twice = (sample.places[:, :, None] == top.places[:, None, :]).any(axis=2)
    pool.places[:, top.places.shape[1] :][twice] = -1
    peaks = np.where(pool.places >= 0, pool.peak, -np.inf)
    # Edges are edges of the histogram, so that its counts are those of the intervals.
    width, counts = facts.histogram.width[some, None], facts.histogram.counts[some]
    bars = np.floor(peaks.max(axis=1, keepdims=True) / width) + 1
    edges = np.round(bars * np.arange(INTERVALS, -1, -1) / INTERVALS).astype(np.int64)
    low = edges[:, 1:] * width
    high = np.hstack([peaks.max(axis=1, keepdims=True), low[:, :-1]])
    ranks = (peaks[:, None, :] >= low[:, :, None]).sum(axis=2)
    chosen = choose_by_rank(peaks, np.pad(ranks, ((0, 0), (1, 0))), IN_INTERVAL)
    below = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 1)), mode="edge")
    below[:, 0] = 0
    reached = np.take_along_axis(below, edges, axis=1)
    share = np.round((reached[:, :-1] - reached[:, 1:]) / facts.rows, 5)
    names = ("low", "high", "share")
    bins = [
        [dict(zip(names, one, strict=True))
         for one in ((-1, most[0], -1), *zip(least, most, part, strict=True))]
        for least, most, part in zip(_rounded(low), _rounded(high), share.tolist(), strict=True)
    ]  # fmt: skip
    strongest = np.where(top.places >= 0, np.arange(top.places.shape[1]), -1)
    return pool.chosen(np.hstack([strongest, chosen])), bins


def write_saedashboard(
    folder: Path, facts: LatentFacts, directions: NDArray[np.float32], source: Source
) -> None:
    """Write what SAEDashboard's runner for Neuronpedia writes."""
    own = {"model_id": source.model, "sae_set": source.set_name}
    settings = {
        **own, "layer": source.layer, "np_sae_id_suffix": source.suffix, "sae_path": "",
        "outputs_dir": "", "huggingface_dataset_path": source.dataset,
        "n_prompts_total": source.contexts, "n_tokens_in_prompt": source.context_length,
        "n_features_at_a_time": BATCH, "n_quantiles": INTERVALS, "top_acts_group_size": TOP,
        "quantile_group_size": IN_INTERVAL, "palinka": version("palinka"),
    }  # fmt: skip
    silent = np.setdiff1d(np.arange(len(facts.lengths)), active(facts)).tolist()
    skipped = {**own, "layer": str(source.layer), "log_sparsity": -6, "skipped_indexes": silent}
    folder.mkdir(parents=True)
    (folder / "run_settings.json").write_text(json.dumps(settings, indent=4))
    (folder / "skipped_indexes.json").write_text(json.dumps(skipped))
    whole = {**own, "layer": source.layer, "sae_id_suffix": source.suffix}
    for number, batch in enumerate(batches(facts, directions, source)):
        features = []
        for feature, texts in batch:
            activations = ", ".join(SAEDASHBOARD_TEXT % text for text in texts)
            features.append(f'{_json(feature)[:-1]}, "activations": [{activations}]}}')
        text = f'{_json(whole)[:-1]}, "features": [{", ".join(features)}]}}'
        (folder / f"batch-{number}.json").write_text(text)


def write_neuronpedia(
    folder: Path, facts: LatentFacts, directions: NDArray[np.float32], source: Source,
    explanations: Mapping[int, str],
) -> None:  # fmt: skip
    """Write the folder of a source that Neuronpedia imports.

    Ids are the same in every export, so that a second import changes nothing.

    Source:
        `convert-saedashboard-to-neuronpedia-export.py` and `importJsonlString` of Neuronpedia.
    """
    folder = folder / source.model / source.id
    made = {"createdAt": datetime.now(UTC).isoformat(timespec="milliseconds")}
    created = {"creatorId": CREATOR, **made}
    for name, line in _metadata(source).items():
        _write_lines(folder / f"{name}.jsonl", [_json({**line, **created, "visibility": "PUBLIC"})])
    near = facts.report.near
    empty: dict[str, Any] = {"dfaValues": [], "lossValues": [], **dict.fromkeys(NULL)}
    for number, batch in enumerate(batches(facts, directions, source)):
        lines: dict[str, list[str]] = {"features": [], "activations": [], "explanations": []}
        for feature, texts in batch:
            latent, vector = feature["feature_index"], feature["vector"]
            own = {"modelId": source.model, "layer": source.id, "index": str(latent)}
            name = f"palinka-{source.model}-{source.id}-{latent}"
            rest = _json({**own, **created, **empty})[1:]
            lines["activations"] += [
                f'{{"id": "{name}-{n}", {NEURONPEDIA_TEXT % text}, {rest}'
                for n, text in enumerate(texts)
            ]
            most = max(text["most"] for text in texts)
            line = {
                **own, **created, "maxActApprox": most, "hasVector": bool(vector), "vector": vector,
                "vectorLabel": None, "vectorDefaultSteerStrength": most, "hookName": source.hook,
                "topkCosSimIndices": near.latents[latent].tolist(),
                "topkCosSimValues": _rounded(near.cosines[latent]),
                **{column: feature[column] for column in COPIED}, "sourceSetName": None,
            }  # fmt: skip
            lines["features"].append(_json(line))
            if text := explanations.get(latent):
                # The database takes only known types and models.
                line = {
                    "id": name, **own, "description": text[:MAX_EXPLANATION], **made,
                    "authorId": CREATOR, "typeName": None, "explanationModelName": None,
                }  # fmt: skip
                lines["explanations"].append(_json(line))
        for name, found in lines.items():
            if found:
                _write_lines(folder / name / f"batch-{number}.jsonl.gz", found)


def _metadata(source: Source) -> dict[str, dict[str, Any]]:
    """Lines about the release, the model, the set and the source, without what has defaults."""
    model, name = source.model, source.set_name
    release, by = f"{name}-{model}", {"creatorName": "palinka"}
    return {
        "release": {"name": release, "description": release, "urls": [], **by},
        "model": {
            "id": model, "displayName": model, "displayNameShort": model, "owner": "",
            "layers": source.layers, "neuronsPerLayer": 0, "inferenceEnabled": True,
        },
        "sourceset": {
            "modelId": model, "name": name, "description": name, "releaseName": release, **by,
        },
        "source": {
            "modelId": model, "setName": name, "id": source.id, "dataset": source.dataset,
            "num_prompts": source.contexts, "num_tokens_in_prompt": source.context_length,
        },
    }  # fmt: skip


def _json(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, allow_nan=False)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text, 5, mtime=0) if path.suffix == ".gz" else text)


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
