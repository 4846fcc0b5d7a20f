"""Peers that are not installed, and packages that a peer imports without needing them here."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Absent(Exception):  # noqa: N818 - a reason to leave a row out, no error
    """Reason that a peer cannot be measured here."""


def peer_module(name: str, package: str, unused: Sequence[str] = ()) -> Any:
    """Import a peer.

    Args:
        name: The module's name.
        package: What to install.
        unused: Packages that it imports and that nothing here runs, or parts of it, such as its
            plots. An empty one takes the place of a part, and of a package that is missing, until
            the peer is imported.

    Raises:
        Absent: If it is not installed, or cannot be imported.
    """
    try:
        with _empty([name for name in unused if "." in name or find_spec(name) is None]):
            return importlib.import_module(name)
    except Exception as error:
        raise Absent(f"`pip install {package}` first ({type(error).__name__}: {error})") from error


@contextmanager
def _empty(packages: Sequence[str]) -> Iterator[None]:
    finder = _Finder(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, module in sys.modules.items() if isinstance(module, _Empty)]:
            del sys.modules[name]


class _Empty(ModuleType):
    """A package in which every name is a class that does nothing."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not any(f"{fullname}.".startswith(f"{package}.") for package in self._packages):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""
