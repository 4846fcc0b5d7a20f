"""What is written for SAEDashboard, Neuronpedia and delphi."""

import gzip
import importlib
import json
import re
import runpy
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from palinka.atlas import exports
from palinka.atlas.facts import gather
from palinka.autoencoders import KSparseAutoencoder
from palinka.cli.convert import _provenance
from palinka.data import ActivationDataModule, Passage
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec
from palinka.training import SparseAutoencoderModule

SCHEMAS = json.loads((Path(__file__).parent / "data" / "exports.schema.json").read_text())
WORDS = " ".join(f"{word} the river" for word in ("over", "under", "behind", "along") * 20)
HOOK = "blocks.3.hook_mlp_out"
SOURCE = exports.Source("mini", 6, 3, "palinka-mlp-pre-24", "v2", HOOK, "Passage", 8, 32)
TYPES = {
    "object": dict, "array": list, "string": str, "number": (int, float), "integer": int,
    "boolean": bool, "null": type(None),
}  # fmt: skip


def check(value: Any, schema: dict[str, Any], place: str = "") -> None:
    """The part of JSON Schema that the schemas use."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    fits = [isinstance(value, TYPES[k]) and isinstance(value, bool) == (k == "boolean")
            for k in kinds]  # fmt: skip
    assert any(fits), (place, value)
    if isinstance(value, int | float):
        assert schema.get("minimum", -np.inf) <= value <= schema.get("maximum", np.inf), place
    for what, kind in (("Items", list), ("Length", str)):
        if isinstance(value, kind):
            least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", np.inf)
            assert least <= len(value) <= most, place
    if isinstance(value, str):
        assert re.search(schema.get("pattern", ""), value), (place, value)
    if isinstance(value, list) and "items" in schema:
        for one in value:
            check(one, schema["items"], f"{place}[]")
    if isinstance(value, dict):
        assert value.keys() == set(schema["required"]), place
        for name, one in value.items():
            check(one, schema["properties"][name], f"{place}.{name}")


def strict(text: str) -> Any:
    def reject(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=reject)


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [strict(line) for line in text.decode().split("\n")[:-1]]


@pytest.fixture(scope="module")
def measured() -> Any:
    """Facts of 24 latents, of which two or more are silent, and all latents of all rows."""
    torch.manual_seed(0)
    data = ActivationDataModule(
        corpus=Passage(WORDS), in_memory=True, validation_fraction=0.0, context_length=32
    )
    autoencoder = KSparseAutoencoder(data.width, 24, k=3)
    module = SparseAutoencoderModule(autoencoder)
    module.scaling.set(0.1 * torch.randn(data.width), 0.5)
    with torch.no_grad():
        autoencoder.encoder.weight[22:] = 0.0
    data.setup("")
    facts = gather(data, module, exports.OPTIONS)
    latents = module.encode(data.validation_rows.read_rows(0, facts.rows)).detach().numpy()
    facts.vocabulary[int(facts.top.tokens[0, 0, 15])] = b"\0"  # type: ignore[index]
    active = int(np.flatnonzero((latents > 0).any(axis=0))[1])
    directions = (autoencoder.dictionary / 0.5).detach().numpy()
    return SimpleNamespace(**locals())


@pytest.fixture(scope="module", params=[HOOK, None], ids=["steered", "not_steered"])
def written(measured: Any, request: Any, tmp_path_factory: Any) -> Any:
    folder, source = tmp_path_factory.mktemp("exports"), replace(SOURCE, hook=request.param)
    texts = {measured.active: "the sea" + 600 * ".", 23: "of a silent one"}
    exports.write_saedashboard(folder / "sd", measured.facts, measured.directions, source)
    exports.write_neuronpedia(folder / "np", measured.facts, measured.directions, source, texts)
    return SimpleNamespace(
        batch=strict((folder / "sd" / "batch-0.json").read_text()),
        settings=strict((folder / "sd" / "run_settings.json").read_text()),
        skipped=strict((folder / "sd" / "skipped_indexes.json").read_text()),
        np=folder / "np" / "mini" / "3-palinka-mlp-pre-24__v2",
        source=source,
    )


def test_saedashboard_has_texts_of_the_top_and_of_intervals(measured: Any, written: Any) -> None:
    check(written.batch, SCHEMAS["batch"])
    check(written.skipped, SCHEMAS["skipped_indexes"])
    silent = np.flatnonzero(~(measured.latents > 0).any(axis=0)).tolist()
    assert written.skipped["skipped_indexes"] == silent != []
    assert written.settings["n_tokens_in_prompt"] == 32
    features = written.batch["features"]
    assert [x["feature_index"] for x in features] == sorted(set(range(24)) - set(silent))
    for feature in features:
        values = measured.latents[:, feature["feature_index"]]
        texts, largest = feature["activations"], round(float(values.max()), 3)
        strongest = -np.sort(-values[values > 0])[:20]
        assert feature["frac_nonzero"] == pytest.approx((values != 0).mean(), abs=6e-6)
        top = [one for one in texts if one["bin_min"] == -1]
        assert {(one["bin_max"], one["bin_contains"]) for one in top} == {(largest, -1)}
        peaks = [one["values"][one["qualifying_token_index"]] for one in texts]
        assert peaks[: len(top)] == pytest.approx(strongest, abs=6e-4)
        bins = dict.fromkeys((x["bin_min"], x["bin_max"], x["bin_contains"]) for x in texts)
        for low, high, share in list(bins)[1:]:
            inside = (values > low - 5e-4) & (values <= high + 5e-4) & (values > 0)
            certain = (values > low + 5e-4) & (values < high - 5e-4)
            assert certain.mean() - 1e-5 <= share <= inside.mean() + 1e-5
            assert high - low == pytest.approx(largest / 5, abs=largest / 30)  # two bars
            own = [i for i, one in enumerate(texts) if one["bin_min"] == low]
            assert all(low <= peaks[i] <= high for i in own)
            assert 1 <= len(own) <= 5
        for one in texts:
            assert len(one["tokens"]) == len(one["values"])
        heights = feature["freq_hist_data_bar_heights"]
        assert sum(heights) == (values != 0).sum()
        vector = measured.directions[feature["feature_index"]]
        expected = vector if written.source.hook else []
        np.testing.assert_allclose(feature["vector"], expected, rtol=0, atol=6e-7)


def converted(batch: dict[str, Any], hook: str | None) -> tuple[list[Any], list[Any]]:
    """`process_data` of Neuronpedia's convert-saedashboard-to-neuronpedia-export.py."""
    model, layer = batch["model_id"], batch["layer"]
    suffix = batch["sae_id_suffix"]
    source = str(layer) + "-" + batch["sae_set"] + ("__" + suffix if suffix else "")
    features, activations = [], []
    lists = (
        "neuron_alignment_indices neuron_alignment_values neuron_alignment_l1"
        " correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1"
        " correlated_features_indices correlated_features_pearson correlated_features_l1"
        " neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights"
        " freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values"
        " decoder_weights_dist"
    )
    for feature in batch["features"]:
        new: dict[str, Any] = {
            "modelId": model, "layer": source, "index": feature["feature_index"],
            "hasVector": "vector" in feature and len(feature["vector"]) > 0,
            "vector": feature["vector"], "vectorLabel": None,
            "hookName": hook, "sourceSetName": None,
            **{name: feature[name] for name in lists.split()},
        }  # fmt: skip
        most = 0
        for text in feature["activations"]:
            value = max(text["values"])
            most = max(most, value)
            activation = {
                "tokens": text["tokens"], "modelId": model, "layer": source,
                "index": feature["feature_index"], "maxValue": value,
                "maxValueTokenIndex": text["values"].index(value), "values": text["values"],
                "minValue": min(text["values"]), "dfaValues": [], "dfaTargetIndex": None,
                "dfaMaxValue": None, "lossValues": [], "logitContributions": None,
                "binContains": text["bin_contains"], "binMax": text["bin_max"],
                "binMin": text["bin_min"], "qualifyingTokenIndex": text["qualifying_token_index"],
                "dataIndex": None, "dataSource": None, "zIndices": None, "zValues": None,
            }  # fmt: skip
            activations.append(activation)
        features.append({**new, "maxActApprox": most, "vectorDefaultSteerStrength": most})
    return features, activations


def test_neuronpedia_is_what_its_converter_makes_of_saedashboard(
    measured: Any, written: Any
) -> None:
    expected = converted(written.batch, written.source.hook)
    for kind, wanted in zip(("features", "activations"), expected, strict=True):
        found = lines(written.np / kind / "batch-0.jsonl.gz")
        for line in found:
            check(line, SCHEMAS[kind])
        assert len({tuple(line) for line in found}) == 1  # the same columns in one order
        unknown = {"id", "createdAt", "creatorId", "topkCosSimIndices", "topkCosSimValues"}
        compared = [{n: v for n, v in line.items() if n not in unknown} for line in found]
        assert compared == [{**line, "index": str(line["index"])} for line in wanted]
    assert len({line["id"] for line in found}) == len(found)
    assert not any("\0" in token for line in found for token in line["tokens"])
    near = measured.facts.report.near
    for line in lines(written.np / "features" / "batch-0.jsonl.gz"):
        assert line["topkCosSimIndices"] == near.latents[int(line["index"])].tolist()
    (explanation,) = lines(written.np / "explanations" / "batch-0.jsonl.gz")
    check(explanation, SCHEMAS["explanations"])
    assert (explanation["index"], explanation["description"].strip(".")) == (
        str(measured.active),
        "the sea",
    )
    metadata = {n: lines(written.np / f"{n}.jsonl")[0] for n in ("release", "sourceset", "source")}
    assert metadata["source"]["id"] == written.np.name
    assert metadata["source"]["setName"] == metadata["sourceset"]["name"]
    assert metadata["sourceset"]["releaseName"] == metadata["release"]["name"]


@pytest.mark.parametrize(
    ("site", "layer", "hook"),
    [
        ("blocks.2.resid", 2, "blocks.2.hook_resid_post"),
        ("hidden.3", 2, "blocks.2.hook_resid_post"),
        ("hidden.0", 0, None),
        ("blocks.2.mlp.out", 2, "blocks.2.hook_mlp_out"),
        ("blocks.4.attn.out", 4, "blocks.4.hook_attn_out"),
        ("blocks.3.mlp.pre", 3, None),
    ],
)
def test_only_three_hooks_are_steered(site: str, layer: int, hook: str | None) -> None:
    spec = SimpleNamespace(language_model=LanguageModelSpec("mini"), corpus=0, context_length=64)
    data: Any = SimpleNamespace(validation_spec=spec, validation_contexts=lambda: range(5))
    stored = {"datamodule_hyper_parameters": {"language_model": {"name": "mini"}}}
    provenance = _provenance({**stored, "source": {"site": site}}, "saelens")
    found = exports.describe_source(data, 24, provenance)
    assert (found.layer, found.hook, found.layers, found.contexts) == (layer, hook, 6, 5)
    with pytest.raises(InputError, match=r"suffix is 'B c'; give lower-case"):
        exports.describe_source(data, 24, provenance, suffix="B c")


def delphi_data(lengths: list[int], context_length: int = 70) -> Any:
    random = np.random.default_rng(0)
    contexts = [SimpleNamespace(tokens=random.integers(0, 99, n)) for n in lengths]
    spec = SimpleNamespace(
        context_length=context_length, corpus=0, language_model=LanguageModelSpec("mini")
    )
    return SimpleNamespace(validation_spec=spec, validation_contexts=lambda: contexts)


@pytest.mark.parametrize("silent", [range(0), range(7), range(11, 30), range(3, 20)])
def test_delphi_gives_every_activation_back(
    silent: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(1)
    dense = random.normal(size=(90, 64, 30)) * (random.random((90, 64, 30)) < 0.1)
    dense[..., silent] = 0.0
    dense[4, 5, 6:9] = 1e-6, -3.0, 65_504.0
    dense = dense.astype(np.float32)
    given = iter(np.split(dense, [64]))  # 4,096 tokens at a time
    monkeypatch.setattr(exports, "encode_contexts", lambda *_: next(given).reshape(-1, 30))
    module = SparseAutoencoderModule(KSparseAutoencoder(4, 30, k=2))
    data = delphi_data([70] * 50 + [63, 20] + [70] * 40)
    notes = exports.write_delphi(tmp_path, data, module, SOURCE, "h.3.mlp", {7: 'a "b"\n'})
    below = int((dense < -1e-5).sum())
    assert notes == [
        "export delphi: contexts of unequal length; 2 of 92 left out",
        f"export delphi: {below:,} activations are below 0; delphi ignores them",
    ]
    cache = tmp_path / "latents" / "h.3.mlp"
    bounds = sorted(tuple(map(int, f.stem.split("_"))) for f in cache.glob("*.safetensors"))
    assert [bounds[0][0], *[stop + 1 for _, stop in bounds]] == [*[b[0] for b in bounds], 30]
    again = np.zeros(dense.shape, np.float16)
    for first, last in bounds:
        stored = load_file(cache / f"{first}_{last}.safetensors")
        assert [stored[n].dtype for n in ("locations", "activations", "tokens")] == [
            np.uint16, np.float16, np.int64,
        ]  # fmt: skip
        assert len(stored["activations"]) > 0
        assert stored["locations"].tolist() == sorted(stored["locations"].tolist())
        context, position, latent = stored["locations"].T
        again[context, position, latent + first] = stored["activations"]
        assert stored["tokens"][50].tolist() == data.validation_contexts()[52].tokens[:64].tolist()
    expected = np.where(np.abs(dense) > 1e-5, dense, 0).astype(np.float16)
    np.testing.assert_array_equal(again, expected)
    config = json.loads((cache / "config.json").read_text())
    assert (config["cache_ctx_len"], config["n_tokens"]) == (64, 90 * 64)
    assert config["n_splits"] == len(bounds)
    (file,) = (tmp_path / "explanations").iterdir()
    assert (file.name, json.loads(file.read_text())) == ("h.3.mlp_latent7.txt", 'a "b"\n')


@pytest.fixture
def delphi(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loader of delphi 0.1.3, with stubs for what needs other packages."""
    if not (found := find_spec("delphi")) or not found.submodule_search_locations:
        pytest.skip("delphi is not installed; pip install eai-delphi==0.1.3 --no-deps")
    (root,) = found.submodule_search_locations

    def stub(name: str, **names: Any) -> None:
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)

    stub("delphi.latents", __path__=[f"{root}/latents"])
    stub("delphi.config", ConstructorConfig=None, SamplerConfig=None)
    stub("delphi.latents.constructors", constructor=None)
    stub("delphi.latents.samplers", sampler=None)
    stub("asyncer", asyncify=lambda function: function)
    stub("jaxtyping", Float=Annotated, Int=Annotated)
    stub("blobfile")
    stub("orjson")
    return importlib.import_module("delphi.latents.loader")


def test_delphi_reads_what_is_written_for_it(
    delphi: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(2)
    dense = random.random((50, 64, 30)) * (random.random((50, 64, 30)) < 0.05)
    dense[..., 4:13] = 0.0
    monkeypatch.setattr(exports, "encode_contexts", lambda *_: dense.reshape(-1, 30))
    module = SparseAutoencoderModule(KSparseAutoencoder(4, 30, k=2))
    exports.write_delphi(tmp_path, delphi_data([70] * 50), module, SOURCE, "h.3.mlp", {})
    settings = SimpleNamespace(non_activating_source="random")
    dataset = delphi.LatentDataset(tmp_path / "latents", None, settings, tokenizer=object())
    again = np.zeros(dense.shape, np.float16)
    for buffer in dataset.buffers:
        for one in buffer:
            context, position, latent = one.activation_data.locations.T
            assert set(latent.tolist()) == {one.latent.latent_index}
            again[context, position, latent] = one.activation_data.activations
    expected = np.where(dense > 1e-5, dense, 0.0).astype(np.float16)
    np.testing.assert_array_equal(again, expected)
    assert dataset.tokens.shape == (50, 64)
    assert str(one.latent) == f"h.3.mlp_latent{one.latent.latent_index}"


def test_saedashboard_reads_what_is_written_for_it(written: Any) -> None:
    if not (found := find_spec("sae_dashboard")) or not found.submodule_search_locations:
        pytest.skip("SAEDashboard is not installed; pip install sae-dashboard==0.8.0 --no-deps")
    (root,) = found.submodule_search_locations
    names = runpy.run_path(f"{root}/neuronpedia/neuronpedia_dashboard.py")
    assert names["NeuronpediaDashboardBatch"](**written.batch).to_dict() == written.batch


def test_delphi_rejects_what_it_cannot_hold(tmp_path: Path, monkeypatch: Any) -> None:
    module = SparseAutoencoderModule(KSparseAutoencoder(4, 30, k=2))
    for value, lengths, message in (
        (71_204.0, [64], "export delphi: an activation of 71,204 does not fit float16; scale"),
        (0.0, [64], "no latent is active"),
        (1.0, [20], "export delphi: no context has 64 tokens; give another --data.context_length"),
    ):
        latents = np.full((64, 30), value, np.float32)
        monkeypatch.setattr(exports, "encode_contexts", lambda *_, found=latents: found)
        with pytest.raises(InputError, match=message):
            exports.write_delphi(tmp_path, delphi_data(lengths), module, SOURCE, "m", {})
