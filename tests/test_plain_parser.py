import pytest

from palinka.cli.commands import ArgumentParser, nearest
from palinka.errors import InputError


@pytest.fixture
def parser() -> ArgumentParser:
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
def test_a_mistake_is_answered_in_one_line(line: str, answer: str, parser: ArgumentParser) -> None:
    with pytest.raises(InputError) as refused:
        parser.parse_args(line.split())
    assert answer in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert nearest("xyz", ["fill", "empty"]) == ""
