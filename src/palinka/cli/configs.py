"""Configurations that come with palinka, and the commands that list and copy them."""

import re
import shutil
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from palinka.errors import InputError, did_you_mean


def list_configs() -> int:
    """List the configurations that come with palinka, for --config NAME."""
    for name in config_names():
        with find_config(name).open(encoding="utf-8") as file:
            summary = file.readline().strip("# .\n")
        print(f"{name:<28}{summary}")
    return 0


def copy_config(name: str, /, to: str = "configs") -> int:
    """Copy a configuration that comes with palinka, and the stimuli that it names.

    Args:
        name: Such as quickstart or analyses/him_her.
        to: The folder.
    """
    if Path(to).suffix:
        raise InputError(f"--to is {to}; expected a folder")
    path = find_config(name)
    used = re.findall(r"(?:\.\./)?(stimuli/\w+\.yaml)", path.read_text(encoding="utf-8"))
    sources = [path, *(config_folder() / part for part in dict.fromkeys(used))]
    targets = [Path(to) / source.relative_to(config_folder()) for source in sources]
    if taken := [target for target in targets if target.exists()]:
        raise InputError(f"{taken[0]} already exists; choose another --to")
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(target)
    return 0


def config_folder() -> Path:
    """Folder of the shipped configurations; in a clone, that at its top."""
    packaged = Path(str(files("palinka"))) / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"


def config_names() -> list[str]:
    """Names of the configurations, such as `quickstart` and `analyses/him_her`."""
    folder = config_folder()
    found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    known = (name.as_posix() for name in found if name.parts[0] != "stimuli")
    return sorted(known, key=lambda name: (name.count("/"), name))


def find_config(name: str) -> Path:
    """Path of a shipped configuration; `him_her` is short for `analyses/him_her`."""
    known = config_names()
    matching = [one for one in known if one == name or one.endswith(f"/{name}")]
    if not matching:
        hint = did_you_mean(name, known, most=0)
        remedy = "give a YAML file, or a name that `palinka configs` lists"
        raise InputError(f"there is no configuration {name}{hint}; {remedy}")
    return config_folder() / f"{matching[0]}.yaml"


def with_paths(arguments: Sequence[str]) -> Iterator[str]:
    """Replace shipped names after `--config` by the paths of their files."""
    before = ""
    for argument in arguments:
        flag = "--config=" if argument.startswith("--config=") else ""
        value = argument.removeprefix(flag)
        named = flag or before in ("--config", "-c")
        if named and value and not Path(value).suffix and not Path(value).exists():
            argument = flag + str(find_config(value))
        before = argument
        yield argument
