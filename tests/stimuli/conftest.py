from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from palinka.analyses.stimuli import Stimuli, load_stimuli
from palinka.assets import mini_gpt2_folder
from palinka.errors import InputError

Load = Callable[[str], Stimuli]
Refusal = Callable[[str], str]


@pytest.fixture(scope="session")
def mini_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(mini_gpt2_folder())


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Every byte a token; the end of a text has a name with a space and an accent."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<à la fin>")


@pytest.fixture(scope="session")
def piece_tokenizer() -> PreTrainedTokenizerBase:
    """As SentencePiece models do it: `▁` for a space, one put in front, bytes as `<0xF0>`."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehimorsw."]
    merges = [("h", "i"), ("hi", "m"), ("▁", "him"), ("▁", "a")]
    pieces += ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


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
