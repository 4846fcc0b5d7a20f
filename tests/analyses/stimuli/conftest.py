from collections.abc import Callable
from pathlib import Path

import pytest

from palinka.analyses.stimuli import Stimuli, load_stimuli
from palinka.errors import InputError

Load = Callable[[str], Stimuli]
Refusal = Callable[[str], str]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load stimuli from YAML as text, in `stimuli.yaml` of the test's folder."""

    def load(content: str) -> Stimuli:
        file = tmp_path / "stimuli.yaml"
        file.write_text(content, encoding="utf-8")
        return load_stimuli(file)

    return load


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """The one line with which YAML is refused, without the name of the file before it."""

    def refusal(content: str) -> str:
        with pytest.raises(InputError) as caught:
            load(content)
        line = str(caught.value)
        assert "\n" not in line
        file, _, problem = line.partition("stimuli.yaml: ")
        assert file
        assert problem
        return problem

    return refusal
