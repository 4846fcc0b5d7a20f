"""What every command has, how its help reads, and what answers a mistake."""

import argparse
import re
from typing import Any

import pytest

from palinka.cli import commands
from palinka.cli.commands import COMMANDS


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    return commands.parsers()


def test_every_command_has_a_parser_with_a_brief_usage(
    parsers: dict[str, argparse.ArgumentParser],
) -> None:
    assert set(parsers) == set(COMMANDS)
    for words, parser in parsers.items():
        usage = parser.format_help().partition("\n\n")[0]
        assert usage.replace(" [options]", "").startswith(f"usage: palinka {words}")
        assert len(usage.splitlines()) <= 3


def test_a_fit_has_the_options_of_data_and_model_before_the_trainers(
    parsers: dict[str, argparse.ArgumentParser],
) -> None:
    text = parsers["fit"].format_help()
    names = ("data.site", "model.autoencoder", "trainer.devices")
    places = [text.index(f"\n  --{name} ") for name in names]
    assert places == sorted(places)
    assert re.search(r"classes:[\w,\s]+BatchTopKAutoencoder,", text)
    assert "known subclasses" not in text


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("cache lsit", "there is no command 'cache lsit'; did you mean 'cache list'?"),
        ("cache", "there is no command 'cache'; did you mean 'cache list'?"),
        ("cache list --cachedir=x", "did you mean 'cache_dir'?"),
        ("cache remove", "no cache named; give keys"),
        ("cache remove a --ye", "did you mean 'yes'?"),
        ("cache list --cache_dir=$NOWHERE_AT_ALL", "NOWHERE_AT_ALL is not set"),
        ("doctor twice", "unrecognized arguments: twice"),
        ("atlas sevre", "sevre"),
        ("completion bsh", "did you mean 'bash'?"),
        ("import", "import needs where; see"),
        ("export", "export needs --ckpt_path, --format, --output; see"),
        ("export --ckpt_path=a --output=b --format=saelen", "did you mean 'saelens'?"),
        ("export --ckpt_path=no.ckpt --output=b --format=saelens", "no checkpoint no.ckpt"),
        ("analyze", "analyze needs --analyses; see"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_mistake_is_answered_in_one_line(
    line: str, answer: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALINKA_CACHE", ".")
    assert answer in refused(*line.split())
