import pytest
import yaml

from palinka.cli.parser import (
    ConfigArgumentParser,
    config_files,
    move_configs_first,
    with_overrides,
)
from palinka.errors import InputError


def test_files_come_first_wherever_they_stood() -> None:
    given = ["fit", "--model.k", "9", "--config", "a.yaml", "--x=1", "--config=b.yaml", "-c", "c"]
    assert move_configs_first(given) == [
        "fit", "--config=a.yaml", "--config=b.yaml", "--config=c", "--model.k", "9", "--x=1",
    ]  # fmt: skip


def test_a_config_without_a_file_is_left_for_the_parser_to_refuse() -> None:
    assert move_configs_first(["fit", "--x", "1", "--config"]) == ["fit", "--x", "1", "--config"]


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (["fit", "--x", "1"], 1),
        (["fit", "--config=a.yaml", "--x", "1"], 2),
        (["--config=a.yaml", "--config=b.yaml"], 2),
    ],
)
def test_overrides_stand_between_files_and_options(given: list[str], place: int) -> None:
    layer = {"model": {"autoencoder": {"init_args": {"k": 5}}}}
    arguments = with_overrides(given, layer)
    assert yaml.safe_load(arguments[place].removeprefix("--config=")) == layer
    assert arguments[:place] + arguments[place + 1 :] == given


def test_a_number_too_large_for_any_is_refused_in_a_line() -> None:
    parser = ConfigArgumentParser()
    parser.add_argument("--fraction", type=float)
    with pytest.raises(InputError, match="cannot be read: int too large") as caught:
        parser.parse_args([f"--fraction={10**400}"])
    assert "\n" not in str(caught.value)


def test_configuration_files_come_in_their_order_however_they_are_written() -> None:
    line = ["fit", "--config=a.yaml", "-c", "b.yaml", "--config", "c.yaml", "--seed", "1"]
    assert config_files(move_configs_first(line)) == ["a.yaml", "b.yaml", "c.yaml"]
