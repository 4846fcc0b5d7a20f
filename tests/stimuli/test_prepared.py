from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli.base import marked, prepared_items


def test_the_summary_shows_no_markup(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    words = ["**a**", "`b`", "<b>c</b>", "d\ne", "f``g", "sixth"]
    prepared = prepared_items("words", mini_tokenizer, [[1]] * 6, [[0]] * 6, words, ["x|y"] * 6)
    assert prepared.summary().splitlines() == [
        "- `x|y`: 6 items, such as",
        "    - `**a**`",
        "    - `` `b` ``",
        "    - `<b>c</b>`",
        "    - `d↵e`",
        "    - ```f``g```",
    ]


def test_conditions_in_the_order_of_their_first_item(
    mini_tokenizer: PreTrainedTokenizerBase,
) -> None:
    prepared = prepared_items(
        "words", mini_tokenizer, [[1]] * 3, [[0]] * 3, ["p", "q", "r"], ["z", "a", "z"]
    )
    heads = [line for line in prepared.summary().splitlines() if line.startswith("- ")]
    assert heads == ["- `z`: 2 items, such as", "- `a`: 1 items, such as"]


def test_the_brackets_leave_spaces_outside(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = mini_tokenizer.encode("I saw him, then.", add_special_tokens=False)
    assert marked(mini_tokenizer, ids, 2) == "I saw [him], then."
    assert marked(mini_tokenizer, ids, 3) == "I saw him[,] then."
