"""Changes to what lies in a folder: links, pipes, folders and strange names in place of files."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random


def change_folder(random: Random, folder: Path, outside: Path) -> None:
    """Put something else where a file of the folder is; links lead to a folder outside of it."""
    file = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    kind = random.randrange(9)
    if kind == 0:
        file.unlink()
    elif kind == 1:  # the same bytes, but behind a link
        target = outside / file.name
        shutil.move(file, target)
        file.symlink_to(target)
    elif kind == 2:
        file.unlink()
        file.symlink_to(random.choice([outside / "secret", outside, file, Path("/dev/zero")]))
    elif kind == 3:
        file.unlink()
        os.mkfifo(file)
    elif kind == 4:
        file.unlink()
        file.mkdir()
    elif kind == 5:
        file.write_bytes(b"")
    elif kind == 6:  # larger than any memory, and all of it a hole
        with suppress(OSError), file.open("r+b") as stream:
            stream.truncate(2**40)
    elif kind == 7:
        leftover = file.with_name(file.name + random.choice([".tmp", ".partial", "~"]))
        leftover.symlink_to(outside / "secret")
    else:
        other = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        shutil.copyfile(other, folder / "copy")
        shutil.move(folder / "copy", file)
