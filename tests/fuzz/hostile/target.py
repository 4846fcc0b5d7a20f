"""Something that reads files, as the fuzz tests see it."""

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import ClassVar

from hostile.oracle import Verdict, judge

SECRET = "not to be read, and never to be written\n"


class Target(ABC):
    """A reader, files that it takes, and how they are changed.

    A case is a folder with `inside`, where the changed files lie, beside `outside`, where
    nothing may be written. The working folder is `inside`.
    """

    name: ClassVar[str]
    written: ClassVar[tuple[str, ...]] = ()
    """Where the reader may write, relative to the case."""

    def __init__(self, folder: Path) -> None:
        """Write the valid files into a folder of the target's own."""
        self.originals = folder / self.name
        self.originals.mkdir(parents=True)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Write valid files into `self.originals`."""

    @abstractmethod
    def change(self, random: Random, inside: Path) -> None:
        """Change the copies of the files."""

    @abstractmethod
    def read(self, inside: Path) -> None:
        """Read the files.

        Raises:
            InputError: If they are refused.
            AssertionError: If they are taken for something that they do not mean.
        """

    def make(self, random: Random, case: Path) -> Path:
        """Write a case of hostile files into a new folder."""
        inside = case / "inside"
        shutil.copytree(self.originals, inside)
        outside = case / "outside"
        outside.mkdir()
        (outside / "secret").write_text(SECRET)
        self.change(random, inside)
        return inside

    def execute(self, random: Random, case: Path) -> Verdict:
        """Make a case, and judge what the reader makes of it."""
        inside = self.make(random, case)
        return judge(lambda: self.read(inside), case, self.written)
