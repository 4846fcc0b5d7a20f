"""Command lines and files: their order, and what may stand where.

A configuration names classes, and can make nothing else than its places expect.
"""

import inspect
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

import palinka
from palinka.__main__ import main
from palinka.cli.fit import PalinkaCLI, Parser
from palinka.cli.parser import ArgumentParser
from palinka.data import ActivationDataModule
from palinka.errors import InputError


def test_the_command_line_wins_over_overrides_and_these_over_files(tmp_path: Path) -> None:
    for name, content in (("a", "{j: 1, k: 1}"), ("b", "{h: 2, i: 2, j: 2, k: 2}")):
        (tmp_path / name).write_text(content)
    parser = ArgumentParser()
    parser.add_argument("word")
    parser.add_argument("-c", "--config", action=ActionConfigFile)
    for name in ("h", "i", "j", "k", "ckpt_path", "trainer"):
        parser.add_argument(f"--{name}", type=int)
    line = ["one", "--h", "-9", "--k=9", "--config", str(tmp_path / "a"), "--trainer", "-7"]
    line += ["-c", str(tmp_path / "b"), "--ckpt_path=5"]
    made = parser.parse_args(line).as_dict()
    assert [made[name] for name in ("word", "h", "i", "j", "k")] == ["one", -9, 2, 2, 9]
    read: list[dict[str, Any]] = []

    def overrides(config: Any) -> dict[str, Any]:
        read.append(config.as_dict())
        return {"j": 3, "k": 3}

    parser.add_overrides(overrides)
    made = parser.parse_args(line).as_dict()
    assert [made[name] for name in ("word", "h", "i", "j", "k")] == ["one", -9, 2, 3, 9]
    (seen,) = read
    assert [seen[name] for name in ("h", "k", "ckpt_path", "trainer")] == [2, 2, 5, -7]


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
    "model.autoencoder", "model.optimizer", "model.lr_scheduler", "data.corpus",
    "data.language_model", "trainer.callbacks", "trainer.callbacks.0", "trainer.logger",
    "trainer.logger.0", "trainer.strategy", "trainer.plugins", "trainer.plugins.0",
    "trainer.profiler", "trainer.accelerator", "data.seed", "seed_everything",
)  # fmt: skip
# Each with the places where it belongs.
NAMED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "os.system": ({"command": "touch planted"}, ()),
    "builtins.eval": ({"source": "open('planted', 'w')"}, ()),
    "torch.load": ({"f": "planted", "weights_only": False}, ()),
    "torch.os.system": ({"command": "touch planted"}, ()),
    "torch.nn.Linear": ({"in_features": 1, "out_features": 1}, ()),
    "torch.optim.Adam": ({"lr": 1.0}, ("model.optimizer",)),
    "lightning.pytorch.callbacks.Timer": ({}, ("trainer.callbacks", "trainer.callbacks.0")),
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


@pytest.fixture(scope="module")
def parser() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stopped, "instantiate_classes", lambda cli: None)
        return Stopped(["fit"]).parser


@pytest.fixture
def folder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def parse(parser: Any, content: Any) -> Any:
    """Parse a file of such content, or of such bytes."""
    given = content if isinstance(content, bytes) else yaml.safe_dump(content).encode()
    Path("config.yaml").write_bytes(given)
    return parser.parse_args(["fit", "--config", "config.yaml"])


def rejected(parser: Any, content: Any, match: str = "") -> None:
    with pytest.raises(InputError, match=match) as caught:
        parse(parser, content)
    assert str(caught.value).isprintable()
    assert not Path("planted").exists()


@pytest.mark.parametrize("place", PLACES)
def test_a_place_takes_only_what_belongs_there(place: str, folder: Path, parser: Any) -> None:
    for path, (arguments, places) in NAMED.items():
        content = nested(place, {"class_path": path, "init_args": arguments})
        if place in places:
            parse(parser, content)
            assert not Path("planted").exists()
        else:
            rejected(parser, content)
    if place in ("model.optimizer", "model.lr_scheduler", "data.corpus"):  # by a name alone
        rejected(parser, nested(place, "canary.plant"))


def test_nothing_is_imported_that_is_pythons_or_for_the_sake_of_a_message(
    folder: Path, parser: Any
) -> None:
    for module in ("antigravity", "this", "idlelib.idle", "turtledemo.clock"):
        content = nested("model.autoencoder", {"class_path": f"{module}.Thing"})
        rejected(parser, content, "is not allowed")
        assert module not in sys.modules
    rejected(parser, {"model": {"x class_path 'canary.Planted'": 1}})
    assert "canary" not in sys.modules


MINE = {"class_path": "canary.Planted"}


@pytest.mark.parametrize(
    "key", ["options", "options.test", "name", "stimuli", "sites", "heatmaps", "autoencoder"]
)
def test_an_entry_of_an_analysis_holds_plain_values(key: str, folder: Path, refused: Any) -> None:
    plain = {"name": "n", "analysis": "unit_tuning", "stimuli": "words.yaml"}
    content = {"analyses": [plain | nested(key, MINE)]}
    if key == "autoencoder":
        content = {"analyses": [plain], key: MINE}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    refused("analyze", "--config", "config.yaml")
    assert not (folder / "planted").exists()


def test_null_stands_only_where_it_is_expected(folder: Path, parser: Any) -> None:
    for place in ("data.corpus", "data.batch_size", "model.autoencoder.k"):
        parse(parser, nested(place, None))
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": None}}
    mine = {"class_path": "KSparseAutoencoder", "init_args": {"tied": None}}
    for place, value in (
        ("data.site", None), ("data.language_model", None), ("data.language_model.dtype", None),
        ("model.sparsity_warmup_steps", None), ("model.optimizer", None), ("model.optimizer", adam),
        ("model.autoencoder", mine),
    ):  # fmt: skip
        rejected(parser, nested(place, value), "null|None")


def test_files_that_cannot_be_read(folder: Path, parser: Any) -> None:
    for text in ("!!int abc", "!!timestamp yesterday", "!!bool maybe"):
        rejected(parser, f"data: {{seed: {text}}}".encode())
    rejected(parser, "data: {site: é}".encode("latin-1"), "utf-8")
    plain = ArgumentParser()
    plain.add_argument("--fraction", type=float)
    with pytest.raises(InputError, match="cannot be read: int too large"):
        plain.parse_args([f"--fraction={10**400}"])


def test_what_a_logger_passes_on_is_not_made(folder: Path, parser: Any) -> None:
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs"}}
    logger["dict_kwargs"] = {"comment": MINE}
    parser.instantiate(parse(parser, nested("trainer.logger", logger)))
    assert not (folder / "planted").exists()


def test_a_class_of_the_users_own_is_taken(folder: Path) -> None:
    content = nested("model.autoencoder", {"class_path": "canary.Mine", "init_args": {"k": 3}})
    content["trainer"] = {"accelerator": "cpu", "logger": False}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    made = Stopped(["fit", "--config", "config.yaml"]).model.autoencoder
    assert type(made).__module__ == "canary"
    assert made.k == 3


@pytest.mark.parametrize("name", ["TopK", "BatchTopK", "Matryoshka", "JumpReLU", "Gated", "ReLU"])
def test_another_class_has_its_own_defaults(
    name: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = getattr(palinka, f"{name}Autoencoder")
    with suppress(SystemExit):
        main(["fit", f"--model.autoencoder={name}Autoencoder", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)["model"]["autoencoder"]
    assert config["class_path"].endswith(f"{name}Autoencoder")
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.name in config["init_args"] and parameter.default is not parameter.empty:
            default = parameter.default
            expected = list(default) if isinstance(default, tuple) else default
            assert config["init_args"][parameter.name] == expected, parameter.name


def test_what_was_given_for_the_former_class_stays(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"class_path": "TopKAutoencoder", "init_args": {"latent_dim": 777, "k": 9}}
    Path("run.yaml").write_text(yaml.safe_dump({"model": {"autoencoder": given}}))
    another = ["--model.autoencoder=BatchTopKAutoencoder", "--model.optimizer=AdamW"]
    with suppress(SystemExit):
        main(["fit", "--config=run.yaml", *another, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["autoencoder"]["init_args"].items() >= {"latent_dim": 777, "k": 9}.items()
    decay = inspect.signature(torch.optim.AdamW).parameters["weight_decay"].default
    assert model["optimizer"]["init_args"]["weight_decay"] == decay != 0


def test_a_language_model_given_by_its_arguments_can_be_saved() -> None:
    parser = Parser(prog="palinka")
    parser.add_lightning_class_args(ActivationDataModule, "data")
    config = parser.parse_args(["--data.language_model.control=permuted"])
    assert yaml.safe_load(parser.dump(config))["data"]["language_model"]["control"] == "permuted"
