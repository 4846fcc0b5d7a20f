import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.spec import find_device

IDS = torch.tensor([[5, 77, 901]])


def test_a_loaded_model_knows_what_it_was_loaded_from(folders: dict[str, Path]) -> None:
    spec = LanguageModelSpec(str(folders["llama"]), device="cpu")
    model = spec.load()
    assert model.reference == spec
    assert model.fingerprint() == spec.fingerprint()
    assert {site: spec.width(site) for site in model.sites} == model.sites


def test_sites_need_no_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["gpt_neox"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    spec = LanguageModelSpec(str(folder))
    assert spec.width("blocks.middle.mlp.pre") == 40
    assert spec.resolve("blocks.middle.mlp.pre") == "blocks.1.mlp.pre"
    assert spec.width("blocks.0.attn.q") == 24
    assert spec.tokenizer()("I saw him")["input_ids"]
    with pytest.raises(InputError, match=r"the model of .* cannot be loaded"):
        spec.load()


def test_weights_that_are_not_all_there_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["gpt2"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 'transformer\.h\.1\.mlp\.c_fc\.weight'"):
        LanguageModel.from_pretrained(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"not safetensors", "the model of"),
        ("config.json", b"{", r"the configuration of .*not a valid JSON"),
        ("config.json", json.dumps({"model_type": "vit"}).encode(), "the model of"),
        ("tokenizer.json", b"{", "the tokenizer of"),
    ],
)
def test_files_that_cannot_be_used_give_one_line(
    folders: dict[str, Path], tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    folder = shutil.copytree(folders["gpt2"], tmp_path / "model")
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        LanguageModelSpec(str(folder)).load()
    assert "\n" not in str(error.value)


def test_code_in_a_model_folder_is_neither_run_nor_asked_about(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(folders["gpt2"], tmp_path / "model")
    planted = tmp_path / "planted"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(planted)!r}).touch()")
    content = {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    with pytest.raises(InputError, match=r"configuration of .* cannot be loaded"):
        LanguageModelSpec(str(folder)).width("blocks.0.mlp.pre")
    assert not planted.exists()


def test_more_layers_than_any_model_has(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["gpt2"], tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"n_layer": 10**9}))
    with pytest.raises(InputError, match="1000000000 layers; expected at most 250"):
        LanguageModelSpec(str(folder)).width("blocks.0.mlp.pre")


@pytest.mark.parametrize("key", ["name", "device"])
def test_null_is_no_name(key: str) -> None:
    with pytest.raises(InputError, match=f"{key} of the language model is None; give text"):
        LanguageModelSpec(**{key: None})


def test_an_unknown_dtype_or_device_is_refused() -> None:
    with pytest.raises(InputError, match="dtype 'float8' for the model; give float32"):
        LanguageModelSpec(dtype="float8")
    for device in ("tpu9", "meta:x", "cuda:99"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used here"):
            LanguageModelSpec(device=device).load()


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")


def test_half_precision_weights_are_computed_in_float32(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    original = LanguageModel.from_pretrained(str(folders["gpt2"]), dtype="float16", device="cpu")
    original.model.save_pretrained(tmp_path)
    original.tokenizer.save_pretrained(tmp_path)
    model = LanguageModel.from_pretrained(str(tmp_path), device="cpu")
    expected = original.model.float()
    with torch.no_grad():
        assert torch.equal(model.logits(IDS), expected(IDS).logits)


@pytest.mark.slow
@pytest.mark.real_data
def test_a_real_gguf_file_loads_and_predicts_english() -> None:
    data = os.environ.get("PALINKA_DATA")
    if not data:
        pytest.skip("PALINKA_DATA does not name a folder of real models")
    folder = Path(data, "models", "smollm2-135m-instruct-gguf")
    spec = LanguageModelSpec(str(folder), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", device="cpu")
    assert spec.resolve("blocks.middle.mlp.post") == "blocks.15.mlp.post"
    assert spec.width("blocks.middle.mlp.post") == 1536
    assert [spec.width(f"blocks.0.attn.{name}") for name in "qkv"] == [576, 192, 192]

    model = spec.load()
    assert model.n_layers == 30
    text = "The capital of France is Paris, and the river that runs through it is the Seine."
    tokens = model.tokenize([text])
    logits = model.logits(tokens)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens.ids[0, 1:])
    assert loss < 5

    with torch.no_grad():
        states = model.model(tokens.ids, output_hidden_states=True).hidden_states
    acts = model.read([text, "Short."], ["hidden.30", "blocks.15.mlp.post", "blocks.14.resid"])
    length = tokens.ids.shape[1]
    torch.testing.assert_close(acts["hidden.30"][0, :length], states[30][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(acts["blocks.14.resid"][0], states[15][0], rtol=1e-4, atol=1e-3)
    assert acts["blocks.15.mlp.post"].shape == (2, length, 1536)
    assert not acts["blocks.15.mlp.post"][1, -1].any()


def test_a_model_is_named_without_the_folders_of_the_machine(workspace: Path) -> None:
    (workspace / "models" / "mine").mkdir(parents=True)
    assert LanguageModelSpec("openai-community/gpt2").name_elsewhere == "openai-community/gpt2"
    assert LanguageModelSpec("models/mine").name_elsewhere == "mine"
    assert LanguageModelSpec(str(workspace / "models" / "mine")).name_elsewhere == "mine"


def test_the_tanh_form_of_gelu_is_computed_in_one_pass(folders: dict[str, Path]) -> None:
    spec = LanguageModelSpec(str(folders["gpt2"]), device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folders["gpt2"])
    assert theirs.config.activation_function == "gelu_new"
    ours = spec.load()
    assert type(ours.model.transformer.h[0].mlp.act) is not type(theirs.transformer.h[0].mlp.act)
    torch.testing.assert_close(ours.logits(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)
