"""The examples of docs/stimuli.md."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Stimuli
from palinka.analyses.stimuli.load import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "stimuli.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_works(
    example: str, load: Callable[[str], Stimuli], mini_tokenizer: PreTrainedTokenizerBase
) -> None:
    prepared = load(
        example.replace("text: bundled_sample", f"text: '{'He came, and went. ' * 400}'")
    )
    assert prepared.prepare(mini_tokenizer).labels


def test_every_kind_has_an_example() -> None:
    assert {re.match(r"kind: (\w+)", example)[1] for example in EXAMPLES} == KINDS.keys()
    for kind in KINDS:
        assert f"## {kind}\n" in PAGE
