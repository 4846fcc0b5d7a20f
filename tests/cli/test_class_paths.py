"""A configuration names classes, and can make nothing else than its places expect."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from palinka.__main__ import main
from palinka.cli.fit import PalinkaCLI
from palinka.cli.parser import move_configs_first
from palinka.errors import InputError

CANARY = """
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from palinka.autoencoders import KSparseAutoencoder

class Planted:
    def __init__(self, *args, **options):
        Path("planted").touch()

def plant(*args, **options):
    Path("planted").touch()

def plant_callback(*args, **options) -> Callback:
    Path("planted").touch()

class Mine(KSparseAutoencoder):
    pass
"""

PLACES = (
    "model.autoencoder",
    "model.optimizer",
    "model.lr_scheduler",
    "data.corpus",
    "data.language_model",
    "trainer.callbacks",
    "trainer.callbacks.0",
    "trainer.logger",
    "trainer.logger.0",
    "trainer.strategy",
    "trainer.plugins",
    "trainer.plugins.0",
    "trainer.profiler",
    "trainer.accelerator",
    "data.seed",
    "seed_everything",
)
# Each with the places where it belongs.
NAMED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "os.system": ({"command": "touch planted"}, ()),
    "posix.system": ({"command": "touch planted"}, ()),
    "subprocess.Popen": ({"args": ["touch", "planted"]}, ()),
    "builtins.eval": ({"source": "open('planted', 'w')"}, ()),
    "builtins.open": ({"file": "planted", "mode": "w"}, ()),
    "torch.load": ({"f": "planted", "weights_only": False}, ()),
    "torch.os.system": ({"command": "touch planted"}, ()),
    "torch.nn.Linear": ({"in_features": 1, "out_features": 1}, ()),
    "torch.optim.Adam": ({"lr": 1.0}, ("model.optimizer",)),
    "palinka.training.callbacks.RunAnalyses": (
        {"analyses": []},
        ("trainer.callbacks", "trainer.callbacks.0"),
    ),
    "palinka.autoencoders.KSparseAutoencoder": ({"latent_dim": 9}, ("model.autoencoder",)),
    "palinka.data.TextFiles": ({"path": "/"}, ("data.corpus",)),
    "canary.Planted": ({}, ()),
    "canary.plant": ({}, ()),
    "canary.plant_callback": ({}, ()),
}


class Stopped(PalinkaCLI):
    """The command line with everything made, and nothing run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Parsed(Stopped):
    """The command line with everything parsed, and nothing made."""

    def instantiate_classes(self) -> None:
        pass


@pytest.fixture(scope="module")
def parser() -> Any:
    return Parsed(["fit"]).parser


@pytest.fixture
def folder(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of the user's own."""
    (workspace / "canary.py").write_text(CANARY)
    (workspace / "words.yaml").write_text("kind: words\nconditions: {a: [b, c, d]}")
    monkeypatch.syspath_prepend(str(workspace))
    monkeypatch.delitem(sys.modules, "canary", raising=False)
    return workspace


def nested(place: str, value: Any) -> Any:
    for part in reversed(place.split(".")):
        value = [value] if part == "0" else {part: value}
    return value


@pytest.mark.parametrize("place", PLACES)
def test_a_place_takes_only_what_belongs_there(place: str, folder: Path, parser: Any) -> None:
    for path, (arguments, places) in NAMED.items():
        content = nested(place, {"class_path": path, "init_args": arguments})
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
        command = move_configs_first(["fit", "--config", "config.yaml"])
        if place in places:
            parser.parse_args(command)
        else:
            with pytest.raises(InputError) as caught:
                parser.parse_args(command)
            assert str(caught.value).isprintable()
        assert not (folder / "planted").exists(), path


@pytest.mark.parametrize(
    "path", ["os.system", "torch.load", "canary.plant", "canary.Planted", "KSparseAutoencoder"]
)
@pytest.mark.parametrize("place", ["model.optimizer", "model.lr_scheduler", "data.corpus"])
def test_a_name_alone_is_held_to_the_same(place: str, path: str, folder: Path, parser: Any) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(nested(place, path)))
    with pytest.raises(InputError):
        parser.parse_args(move_configs_first(["fit", "--config", "config.yaml"]))
    assert not (folder / "planted").exists()


@pytest.mark.parametrize("module", ["antigravity", "this", "idlelib.idle", "turtledemo.clock"])
def test_nothing_that_comes_with_python_is_imported(module: str, folder: Path, parser: Any) -> None:
    content = nested("model.autoencoder", {"class_path": f"{module}.Thing"})
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="is not allowed"):
        parser.parse_args(move_configs_first(["fit", "--config", "config.yaml"]))
    assert module not in sys.modules


def test_nothing_is_imported_for_the_sake_of_a_message(folder: Path, parser: Any) -> None:
    key = "x class_path 'canary.Planted'"
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {key: 1}}))
    with pytest.raises(InputError):
        parser.parse_args(move_configs_first(["fit", "--config", "config.yaml"]))
    assert "canary" not in sys.modules


CALL = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "planted"]}}
MINE = {"class_path": "canary.Planted"}


@pytest.mark.parametrize("call", [CALL, MINE])
@pytest.mark.parametrize("key", ["options", "options.test", "name", "stimuli", "sites", "heatmaps"])
def test_an_entry_of_an_analysis_holds_plain_values(
    key: str, call: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry: dict[str, Any] = {"name": "n", "analysis": "unit_tuning", "stimuli": "words.yaml"}
    entry |= nested(key, call)
    for content in ({"analyses": [entry]}, {"analyses": [entry, entry], "autoencoder": call}):
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
        assert main(["analyze", "--config", "config.yaml"]) == 2
        assert capsys.readouterr().err.count("palinka: error: ") == 1
        assert not (folder / "planted").exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("data.site", None),
        ("data.context_length", None),
        ("data.language_model", None),
        ("data.language_model.dtype", None),
        ("model.sparsity_weight", None),
        ("model.optimizer", None),
        ("model.optimizer", {"class_path": "torch.optim.Adam", "init_args": {"lr": None}}),
        ("model.autoencoder", {"class_path": "KSparseAutoencoder", "init_args": {"tied": None}}),
        ("data.corpus", {"class_path": "TextFiles", "init_args": {"path": "x", "pattern": None}}),
    ],
)
def test_null_stands_only_where_it_is_expected(
    place: str, value: Any, folder: Path, parser: Any
) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(nested(place, value)))
    with pytest.raises(InputError, match=r"null|None"):
        parser.parse_args(move_configs_first(["fit", "--config", "config.yaml"]))


@pytest.mark.parametrize("place", ["data.corpus", "data.batch_size", "model.autoencoder.k"])
def test_null_is_taken_where_it_is_expected(place: str, folder: Path, parser: Any) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(nested(place, None)))
    parser.parse_args(move_configs_first(["fit", "--config", "config.yaml"]))


@pytest.mark.parametrize("text", ["!!int abc", "!!timestamp yesterday", "!!bool maybe", "[" * 9000])
def test_yaml_that_cannot_be_built(text: str, folder: Path, parser: Any) -> None:
    (folder / "config.yaml").write_text(f"data: {{seed: {text}}}")
    with pytest.raises(InputError) as caught:
        parser.parse_args(move_configs_first(["fit", "--config", "config.yaml"]))
    assert str(caught.value).isprintable()


def test_a_configuration_in_another_encoding(folder: Path, parser: Any) -> None:
    (folder / "config.yaml").write_bytes("data: {site: é}".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        parser.parse_args(move_configs_first(["fit", "--config", "config.yaml"]))


def test_what_a_logger_passes_on_is_not_made(folder: Path, parser: Any) -> None:
    logger = {
        "class_path": "TensorBoardLogger",
        "init_args": {"save_dir": "logs"},
        "dict_kwargs": {"comment": MINE},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(nested("trainer.logger", logger)))
    settings = parser.parse_args(move_configs_first(["fit", "--config", "config.yaml"]))
    parser.instantiate(settings)
    assert not (folder / "planted").exists()


def test_a_class_of_the_users_own_is_taken(folder: Path) -> None:
    content = nested("model.autoencoder", {"class_path": "canary.Mine", "init_args": {"k": 3}})
    content["trainer"] = {"accelerator": "cpu", "logger": False}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    made = Stopped(["fit", "--config", "config.yaml"]).model.autoencoder
    assert type(made).__module__ == "canary"
    assert made.k == 3
