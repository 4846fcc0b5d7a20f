import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from palinka.assets import mini_gpt2_folder


@pytest.fixture(scope="session")
def mini_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(mini_gpt2_folder())


@pytest.fixture
def other_tokenizer() -> PreTrainedTokenizerBase:
    """Every byte a token, in an order that is not the mini model's; a BOS token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
