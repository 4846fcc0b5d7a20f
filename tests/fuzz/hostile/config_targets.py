"""Configurations of the command line: parsed, and made into objects, but not run."""

import contextlib
import io
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import yaml

import palinka.cli.analyze
import palinka.cli.fit
from hostile.target import Target
from hostile.texts import change_yaml
from palinka.__main__ import main
from palinka.analyses.run import check_options, find_analysis
from palinka.analyses.stimuli import load_stimuli
from palinka.cli.parser import files_first
from palinka.errors import InputError

ENTRY: dict[str, Any] = {
    "name": "grammar",
    "analysis": "unit_tuning",
    "stimuli": "words.yaml",
    "sites": ["blocks.3.mlp.pre"],
    "options": {"test": "welch", "permutations": 10},
    "heatmaps": {"by": "t", "ranks": [1, -1], "text": "words.yaml"},
}
FIT: dict[str, Any] = {
    "seed_everything": 0,
    "data": {
        "language_model": {"name": "mini", "dtype": "float32"},
        "site": "blocks.middle.mlp.pre",
        "corpus": {"class_path": "Passage", "init_args": {"text": "A passage."}},
        "batch_size": 64,
        "context_length": 16,
        "validation_fraction": 0.1,
        "train_tokens": 1024,
        "center": True,
        "cache_dir": "cache",
    },
    "model": {
        "autoencoder": {
            "class_path": "KSparseAutoencoder",
            "init_args": {"latent_dim": 64, "k": 3},
        },
        "sparsity_weight": 0.1,
        "sparsity_warmup_steps": 3,
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "fused": True}},
        "lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.ExponentialLR",
            "init_args": {"gamma": 0.9},
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 5,
        "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs"}},
        "callbacks": [
            {"class_path": "RunAnalyses", "init_args": {"analyses": [ENTRY]}},
            {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 2}},
        ],
    },
    "ckpt_path": None,
}  # fmt: skip
ANALYZE: dict[str, Any] = {"language_model": "mini", "output": "findings", "analyses": [ENTRY]}


class Stopped(palinka.cli.fit.PalinkaCLI):
    """The command line up to where it would begin to run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Parsed(Stopped):
    """The command line up to the parsed configuration."""

    def instantiate_classes(self) -> None:
        pass


class _Config(Target):
    content: dict[str, Any]

    def prepare(self) -> None:
        words = {"kind": "words", "conditions": {c: ["one", "two", "six"] for c in "ab"}}
        (self.originals / "words.yaml").write_text(yaml.safe_dump(words))
        (self.originals / "config.yaml").write_text(yaml.safe_dump(self.content, sort_keys=False))

    def change(self, random: Random, inside: Path) -> None:
        file = inside / "config.yaml"
        file.write_bytes(change_yaml(random, file.read_bytes()))


class FitParser(_Config):
    """The parser of `fit`."""

    name = "fit parser"
    content = FIT

    def prepare(self) -> None:
        super().prepare()
        self.parser = Parsed(["fit"]).parser

    def read(self, inside: Path) -> None:
        with contextlib.chdir(inside):
            self.parser.parse_args(files_first(["fit", "--config", "config.yaml"]))


class _Main(_Config):
    """The whole command line, judged by its exit status and what it prints."""

    command: str

    def prepare(self) -> None:
        super().prepare()
        self.read(self.originals)  # what is only imported now is not counted as slow

    def read(self, inside: Path) -> None:
        shown = io.StringIO()
        with (
            contextlib.chdir(inside),
            contextlib.redirect_stderr(shown),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            status = main([self.command, "--config", "config.yaml"])
        if status == 2:
            lines = [line for line in shown.getvalue().splitlines() if "palinka: error: " in line]
            assert lines, shown.getvalue()
            raise InputError(lines[-1])
        assert status == 0, shown.getvalue()


class FitCommand(_Main):
    """`palinka fit`, up to where the training would begin."""

    name = "fit"
    content = FIT
    command = "fit"
    written = ("inside/cache", "inside/logs")

    def read(self, inside: Path) -> None:
        with mock.patch("palinka.cli.fit.PalinkaCLI", Stopped):
            super().read(inside)


class AnalyzeCommand(_Main):
    """`palinka analyze`, up to where a language model would be loaded."""

    name = "analyze"
    content = ANALYZE
    command = "analyze"

    def read(self, inside: Path) -> None:
        with mock.patch("palinka.cli.analyze.run_analysis", _read_entry):
            super().read(inside)


def _read_entry(entry: Any, reader: Any) -> Any:
    function = find_analysis(entry.analysis)
    check_options(entry.analysis, function, entry.options)
    reader.sites(entry.sites)
    load_stimuli(str(entry.stimuli))
    return mock.Mock(write=lambda output: output, report=lambda: "")
