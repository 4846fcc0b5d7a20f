"""Packages in which every module is known by the one function that bears its name."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any


class FunctionPackage(ModuleType):
    """A package whose attribute `name` is the function `name` of its module `name`.

    A package becomes one by `sys.modules[__name__].__class__ = FunctionPackage`. A new file is
    then found without being listed anywhere, when it is first asked for.
    """

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in dir(self):
            importlib.import_module(f"{self.__name__}.{name}")
            return self.__dict__[name]
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        # Whoever imports a module of the package makes the import system bind it here.
        if isinstance(value, ModuleType) and hasattr(value, name):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(self.__path__))
