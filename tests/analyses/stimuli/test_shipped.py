"""The stimuli under configs/stimuli, under the tokenizers that they were written for."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from palinka.analyses.stimuli import Paired, Prepared, load_stimuli
from palinka.interventions import Pairs
from palinka.language_models import LanguageModel, Tokens

FOLDER = Path(__file__).parents[3] / "configs" / "stimuli"
FILES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
PAIRED = ("he_she", "ioi")
COUNTS = {
    "him_her": {"him": 62, "her": 62},
    "verbs_nouns": {"verbs": 100, "nouns": 100},
    "words": {"space": 10, "interior": 12, "fruit": 12},
    "punctuation": {"comma": 250, "full_stop": 250},
    "he_she": {"clean": 120, "corrupted": 120},
    "ioi": {"clean": 48, "corrupted": 48},
}
SHORTEST = {"passage": 150, "grammar_passage": 120}


def check(name: str, prepared: Prepared) -> None:
    """What each file promises, whatever the tokenizer."""
    if name in COUNTS:
        assert Counter(prepared.conditions) == COUNTS[name]
        assert name != "words" or len(set(prepared.labels)) == 34
    else:
        assert len(prepared.tokens[0]) >= SHORTEST[name]
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        for category, words in content["categories"].items():
            occurrences = len(re.findall(rf"\b({'|'.join(words)})\b", content["text"]))
            assert sum(prepared.targets[category]) == occurrences
    if name == "punctuation":
        assert {len(window) for window in prepared.tokens} == {31}
        assert len(set(prepared.tokens)) == 500


@pytest.mark.parametrize("name", FILES)
def test_under_the_mini_model(name: str, mini_tokenizer: PreTrainedTokenizerBase) -> None:
    check(name, load_stimuli(FOLDER / f"{name}.yaml").prepare(mini_tokenizer))


@pytest.fixture(scope="module")
def gpt2(real_data: Path) -> PreTrainedTokenizerBase:
    if not (folder := real_data / "tokenizers" / "gpt2").is_dir():
        pytest.skip("PALINKA_DATA has no tokenizer of GPT-2")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def smollm2(real_data: Path) -> PreTrainedTokenizerBase:
    pytest.importorskip("gguf")
    files = list((real_data / "models" / "smollm2-135m-instruct-gguf").glob("*.gguf"))
    if not files:
        pytest.skip("PALINKA_DATA has no SmolLM2")
    return AutoTokenizer.from_pretrained(files[0].parent, gguf_file=files[0].name)


@pytest.mark.real_data
@pytest.mark.parametrize("tokenizer", ["gpt2", "smollm2"])
@pytest.mark.parametrize("name", FILES)
def test_under_real_tokenizers(name: str, tokenizer: str, request: pytest.FixtureRequest) -> None:
    stimuli = load_stimuli(FOLDER / f"{name}.yaml")
    check(name, stimuli.prepare(request.getfixturevalue(tokenizer)))
    if isinstance(stimuli, Paired):
        check_pairs(stimuli.prepare_pairs(request.getfixturevalue(tokenizer)))


def check_pairs(pairs: Pairs) -> None:
    """Templates have as many pairs, which differ from each other, and in the words of one role."""
    (count,) = set(Counter(pairs.templates).values())
    assert len(set(pairs.templates)) == 12
    assert len({tuple(ids) for ids in pairs.clean}) == 12 * count
    (role,) = {"subject", "s2"} & pairs.roles.keys()
    for clean, corrupted, at in zip(pairs.clean, pairs.corrupted, pairs.roles[role], strict=True):
        assert [
            i for i, ids in enumerate(zip(clean, corrupted, strict=True)) if len({*ids}) > 1
        ] == [at]


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_under_the_mini_model(name: str, mini_tokenizer: PreTrainedTokenizerBase) -> None:
    stimuli = load_stimuli(FOLDER / f"{name}.yaml")
    assert isinstance(stimuli, Paired)
    check_pairs(stimuli.prepare_pairs(mini_tokenizer))


def test_the_mini_model_says_he_of_a_man_and_she_of_a_woman() -> None:
    model = LanguageModel.from_pretrained("mini", device="cpu")
    stimuli = load_stimuli(FOLDER / "he_she.yaml")
    assert isinstance(stimuli, Paired)
    pairs = stimuli.prepare_pairs(model.tokenizer)
    ends, answers, wrong = (
        torch.tensor(each) for each in (pairs.roles["end"], pairs.answers, pairs.wrong)
    )
    rows = torch.arange(len(pairs))
    differences = []
    for prompts in (pairs.clean, pairs.corrupted):
        logits = model.logits(Tokens.of(prompts))[rows, ends]
        differences.append(logits[rows, answers[:, 0]] - logits[rows, wrong[:, 0]])
    solved = (differences[0] > 0) & (differences[1] < 0)
    assert solved.float().mean() > 0.9


def test_the_frames_have_no_other_pronoun_of_either() -> None:
    frames = yaml.safe_load((FOLDER / "him_her.yaml").read_text())["frames"]
    assert len(frames) >= 54
    assert len(set(frames)) == len(frames)
    for frame in frames:
        assert not re.search(r"\b(he|him|his|himself|she|her|hers|herself)\b", frame, re.I)
    assert len({frame.index("{target}") for frame in frames}) > 20


def test_the_passage_is_that_of_the_reference_run() -> None:
    run = yaml.safe_load((FOLDER.parent / "passage.yaml").read_text())
    text = yaml.safe_load((FOLDER / "passage.yaml").read_text())["text"]
    assert text == run["data"]["corpus"]["init_args"]["text"]
