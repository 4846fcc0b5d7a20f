import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from palinka.assets import mini_gpt2_folder
from palinka.errors import InputError
from palinka.language_models.spec import Source, find_source


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
        (response_error(RepositoryNotFoundError), "there is no model 'owner/model'"),
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
    with pytest.raises(InputError, match="there is no model folder"):
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gguf and accelerate: pip install 'palinka\[gguf"):
        find_source(str(tmp_path / "small.gguf"))


def test_a_local_folder_has_no_revision() -> None:
    with pytest.raises(InputError, match="only models on the hub have revisions"):
        find_source("mini", revision="main")
