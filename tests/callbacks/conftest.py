from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from palinka.analyses.reader import ActivationReader
from palinka.language_models import LanguageModelSpec


@pytest.fixture(scope="session")
def mini() -> ActivationReader:
    """Neurons of the bundled model, loaded once."""
    return ActivationReader(LanguageModelSpec("mini"))


@pytest.fixture
def stimuli(tmp_path: Path) -> Callable[..., str]:
    """Writes a stimuli file and gives its path."""

    def write(name: str = "stimuli.yaml", **content: object) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write
