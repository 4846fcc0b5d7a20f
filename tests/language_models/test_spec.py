import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from palinka.assets import mini_gpt2_folder
from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.spec import Source, find_device, find_source, fingerprint

IDS = torch.tensor([[5, 77, 901]])


def test_a_loaded_model_knows_what_it_was_loaded_from(folders: dict[str, Path]) -> None:
    spec = LanguageModelSpec(str(folders["llama"]), device="cpu")
    model = LanguageModel.load(spec)
    assert model.spec == spec
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
        LanguageModel.load(spec)


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
        LanguageModel.load(LanguageModelSpec(str(folder)))
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


@pytest.mark.parametrize("key", ["name", "device"])
def test_null_is_no_name(key: str) -> None:
    with pytest.raises(InputError, match=f"{key} of the language model is None; give text"):
        LanguageModelSpec(**{key: None})


def test_an_unknown_dtype_or_device_is_refused() -> None:
    with pytest.raises(InputError, match="dtype 'float8' for the model; give float32"):
        LanguageModelSpec(dtype="float8")
    for device in ("tpu9", "meta:x", "cuda:99"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used here"):
            LanguageModel.load(LanguageModelSpec(device=device))


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

    model = LanguageModel.load(spec)
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
    assert LanguageModelSpec("openai-community/gpt2").portable_name == "openai-community/gpt2"
    assert LanguageModelSpec("models/mine").portable_name == "mine"
    assert LanguageModelSpec(str(workspace / "models" / "mine")).portable_name == "mine"


def test_the_tanh_form_of_gelu_is_computed_in_one_pass(folders: dict[str, Path]) -> None:
    spec = LanguageModelSpec(str(folders["gpt2"]), device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folders["gpt2"])
    assert theirs.config.activation_function == "gelu_new"
    ours = LanguageModel.load(spec)
    assert type(ours.model.transformer.h[0].mlp.act) is not type(theirs.transformer.h[0].mlp.act)
    torch.testing.assert_close(ours.logits(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)


class Hub:
    """What the hub answers, in place of a network."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __call__(self) -> "Hub":
        return self

    def model_info(self, name: str, revision: str | None, timeout: float) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(ConnectionError("no route\nto the host"))
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    return stand_in


def response_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "404")
    return error


def test_mini_is_the_bundled_folder() -> None:
    assert find_source("mini") == Source(mini_gpt2_folder())


def test_a_name_on_the_hub_is_pinned_to_its_commit(hub: Hub) -> None:
    hub.answer = SimpleNamespace(sha="abc123", siblings=None)
    source = find_source("owner/model", revision="step7")
    assert source == Source("owner/model", "step7", "abc123", offline=False)
    assert source.arguments()["revision"] == "step7"
    assert source.arguments()["local_files_only"] is False


def test_without_a_network_the_cache_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = Path("cache", "models--owner--model", "snapshots", "abc123")
    there = {"config.json"}

    def in_cache(_: str, file: str, revision: str | None) -> str | None:
        return str(cached / file) if file in there else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", in_cache)
    assert find_source("owner/model") == Source("owner/model", None, "abc123")
    assert find_source("owner/model").arguments()["local_files_only"] is True
    there.add("adapter_config.json")
    with pytest.raises(InputError, match="'owner/model' has a PEFT adapter"):
        find_source("owner/model")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            ConnectionError("no route\nto the host"),
            r"at revision 'r1'.*no such folder.*not reached \(no route\)",
        ),
        (TimeoutError(), r"not reached \(TimeoutError\)"),
        (response_error(RepositoryNotFoundError), "the model 'owner/model' could not be found"),
        (response_error(RevisionNotFoundError), "has no revision 'r1'"),
    ],
)
def test_a_model_that_cannot_be_had_says_what_was_tried(
    hub: Hub, answer: Exception, message: str
) -> None:
    hub.answer = answer
    with pytest.raises(InputError, match=message) as error:
        find_source("owner/model", "r1")
    assert "\n" not in str(error.value)


def test_an_impossible_name_never_reaches_the_hub() -> None:
    with pytest.raises(InputError, match="neither a folder nor a possible name"):
        find_source("not a name")


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "../model", "~/no/model", "a/b/c"])
def test_a_path_that_is_not_there_never_reaches_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="does not exist; give a folder"):
        find_source(name)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        find_source(str(tmp_path))
    (tmp_path / "small.gguf").touch()
    with pytest.raises(InputError, match=r"has no config\.json; give gguf_file.*small\.gguf"):
        find_source(str(tmp_path))
    with pytest.raises(InputError, match=r"has no other\.gguf; give gguf_file.*small\.gguf"):
        find_source(str(tmp_path), gguf_file="other.gguf")


@pytest.mark.parametrize("with_base", [True, False])
def test_an_adapter_is_rejected_with_and_without_its_base_model(
    tmp_path: Path, with_base: bool
) -> None:
    if with_base:
        shutil.copytree(mini_gpt2_folder(), tmp_path, dirs_exist_ok=True)
        assert find_source(str(tmp_path)) == Source(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    with pytest.raises(InputError, match=r"has a PEFT adapter .*merge_and_unload") as error:
        find_source(str(tmp_path))
    assert "\n" not in str(error.value)


def test_an_adapter_on_the_hub_is_rejected(hub: Hub) -> None:
    files = [SimpleNamespace(rfilename=name) for name in ("config.json", "adapter_config.json")]
    hub.answer = SimpleNamespace(sha="abc123", siblings=files[:1])
    assert find_source("owner/model").commit == "abc123"
    hub.answer = SimpleNamespace(sha="abc123", siblings=files)
    with pytest.raises(InputError, match="'owner/model' has a PEFT adapter"):
        find_source("owner/model")


def test_a_gguf_file_may_be_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").touch()
    expected = Source(tmp_path, gguf_file="small.gguf")
    assert find_source(str(tmp_path / "small.gguf")) == expected
    assert find_source(str(tmp_path), gguf_file="small.gguf") == expected


def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.gguf").touch()
    monkeypatch.setattr("palinka.language_models.spec.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gguf and accelerate: pip install 'palinka\[gguf"):
        find_source(str(tmp_path / "small.gguf"))


def test_a_local_folder_has_no_revision() -> None:
    with pytest.raises(InputError, match="only models on the hub have revisions"):
        find_source("mini", revision="main")


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["gpt2"], tmp_path / "model")


def test_a_copy_elsewhere_is_the_same_model(folders: dict[str, Path], folder: Path) -> None:
    found = fingerprint(Source(folder), "float32")
    assert found == fingerprint(Source(folders["gpt2"]), "float32")
    assert set(found) == {"weights", "tokenizer", "dtype"}
    assert not any(str(folder.parent) in value for value in found.values())


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model.safetensors", "weights"),
        ("config.json", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("tokenizer_config.json", "tokenizer"),
    ],
)
def test_one_byte_more_is_another_model(folder: Path, file: str, changes: str) -> None:
    before = fingerprint(Source(folder), "float32")
    with (folder / file).open("ab") as stream:
        stream.write(b" ")
    after = fingerprint(Source(folder), "float32")
    assert {key for key in before if before[key] != after[key]} == {changes}


def test_a_byte_changed_in_place_is_another_model(folder: Path) -> None:
    file = folder / "model.safetensors"
    before = fingerprint(Source(folder), "float32")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert fingerprint(Source(folder), "float32") != before


def test_the_dtype_is_part_of_it(folder: Path) -> None:
    assert fingerprint(Source(folder), "float32") != fingerprint(Source(folder), "float16")


def test_a_gguf_file_is_identified_by_its_content(tmp_path: Path) -> None:
    for name, content in {"a.gguf": b"1", "b.gguf": b"1", "c.gguf": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (fingerprint(Source(tmp_path, gguf_file=f"{name}.gguf"), "float32") for name in "abc")
    assert a == b != c


def test_a_model_on_the_hub_is_identified_by_its_commit() -> None:
    found = fingerprint(Source("owner/model", "main", "abc123"), "float32")
    assert found["name"] == "owner/model"
    assert found["revision"] == "abc123"
    assert found == fingerprint(Source("owner/model", "v1", "abc123", offline=False), "float32")
    assert found != fingerprint(Source("owner/model", "main", "def456"), "float32")
    assert found != fingerprint(
        Source("owner/model", "main", "abc123", gguf_file="a.gguf"), "float32"
    )
