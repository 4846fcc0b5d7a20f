"""What every command has, and how its help reads."""

import argparse
import re

import pytest

from palinka.cli import commands
from palinka.cli.commands import COMMANDS, ArgumentParser
from palinka.errors import InputError


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    return commands.parsers()


def test_every_command_has_a_parser_and_every_parser_a_command(
    parsers: dict[str, argparse.ArgumentParser],
) -> None:
    assert {words.split()[0] for words in parsers} == set(COMMANDS)


def test_usage_is_brief_and_names_what_must_be_given(
    parsers: dict[str, argparse.ArgumentParser],
) -> None:
    for words, parser in parsers.items():
        usage = parser.format_help().partition("\n\n")[0]
        assert usage.startswith(f"usage: palinka {words} ")
        assert len(usage.splitlines()) <= 3
    assert "--ckpt_path CKPT_PATH --output OUTPUT" in parsers["atlas"].format_help()


def test_a_fit_groups_its_options_with_the_data_and_the_model_before_the_trainer(
    parsers: dict[str, argparse.ArgumentParser],
) -> None:
    text = parsers["fit"].format_help()
    places = [
        text.index(f"\n  --{name} ") for name in ("ckpt_path", "data.site", "trainer.devices")
    ]
    places.insert(2, text.index("\n  --model.autoencoder "))
    assert places == sorted(places)
    assert re.search(r"classes:[\w,\s]+BatchTopKAutoencoder,", text)
    assert "known subclasses" not in text


@pytest.fixture
def jar() -> ArgumentParser:
    parser = ArgumentParser("palinka jar")
    commands = parser.add_subparsers(dest="command")
    fill = commands.add_parser("fill")
    fill.add_argument("--liters", type=float)
    fill.add_argument("--fruit", choices=["plum", "apricot"])
    commands.add_parser("empty")
    return parser


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("fll", "did you mean 'fill'?"),
        ("fill --liter 1", "did you mean '--liters'?"),
        ("fill --liter=1", "did you mean '--liters'?"),
        ("fill --fruit plumm", "did you mean 'plum'?"),
        ("fill --liters much", "invalid float value"),
        ("fill twice", "unrecognized arguments: twice; see `palinka jar --help`"),
    ],
)
def test_a_mistake_is_answered_in_one_line(line: str, answer: str, jar: ArgumentParser) -> None:
    with pytest.raises(InputError) as refused:
        jar.parse_args(line.split())
    assert answer in str(refused.value)
    assert "\n" not in str(refused.value)
