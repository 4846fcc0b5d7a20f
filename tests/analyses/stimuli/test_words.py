from hypothesis import example, given
from hypothesis import strategies as st

from palinka.analyses.stimuli import Words
from palinka.language_models import LanguageModelSpec

MINI = LanguageModelSpec("mini").tokenizer()
WORD = st.text(min_size=1, max_size=10).filter(lambda word: word == word.strip() != "")


@given(st.lists(WORD, min_size=3, max_size=6), st.lists(WORD, min_size=3, max_size=6))
@example(["him", "wormwood", "New York"], ["a", "b", "c"])
def test_all_tokens_of_the_word_alone(verbs: list[str], nouns: list[str]) -> None:
    prepared = Words({"v": verbs, "n": nouns}).prepare(MINI)
    assert prepared.labels == (*verbs, *nouns)
    assert prepared.conditions == ("v",) * len(verbs) + ("n",) * len(nouns)
    for word, ids, pool in zip(verbs + nouns, prepared.tokens, prepared.pool, strict=True):
        alone = MINI.backend_tokenizer.encode(word, add_special_tokens=False).ids
        assert ids == tuple(alone)
        assert pool == tuple(range(len(alone)))
        if word == "him":  # no space before it
            assert [MINI.decode([index]) for index in ids] == ["h", "im"]
