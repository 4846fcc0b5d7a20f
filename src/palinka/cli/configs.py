"""`palinka configs` and `palinka configs copy`."""

import re
import shutil
from pathlib import Path

from palinka.cli.options import config_folder, config_names, find_config
from palinka.errors import InputError


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
    for target in targets:
        if target.exists():
            raise InputError(f"{target} already exists; remove it, or choose another --to")
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(target)
    return 0
