"""Arguments as a checkpoint may hold them: plain values that load with `weights_only=True`."""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palinka.corpora import Corpus
from palinka.language_models import LanguageModelSpec

# Lets Lightning's `load_from_checkpoint` build the corpus from its class path.
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def plain_arguments(
    language_model: LanguageModelSpec, corpus: Corpus, cache_dir: Path
) -> dict[str, Any]:
    """Those arguments of the data module that are objects, as a YAML file would give them."""
    kind = type(corpus)
    # By the convention of the corpora: an argument is kept under its own name.
    arguments = {
        name: _plain(getattr(corpus, name, None)) for name in inspect.signature(kind).parameters
    }
    return {
        "language_model": asdict(language_model),
        "corpus": {
            "class_path": f"{kind.__module__}.{kind.__qualname__}",
            "init_args": {name: value for name, value in arguments.items() if value is not None},
        },
        "cache_dir": str(cache_dir),
        "_instantiator": INSTANTIATOR,
    }


def _plain(value: Any) -> bool | int | float | str | None:
    """The value as JSON has it; None for what is not one number or text."""
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else None
