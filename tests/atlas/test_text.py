import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.atlas.text import MAX_ACTIVE, Text, TokenActivations, TokenCounter
from palinka.data import Context


def block(tokens: list[int], document: int, start: int = 0) -> Context:
    positions = np.arange(start, start + len(tokens))
    return Context(np.array(tokens), np.full(len(tokens), document), positions)


def text() -> Text:
    return Text([block([0, 1, 2], 5), block([3, 4, 5], 5, 3), block([6, 7], 2)])


def test_tokens_are_found_by_document_and_position() -> None:
    found = text().locate(np.array([5, 2, 5]), np.array([4, 1, 0]))
    np.testing.assert_array_equal(text().tokens[found], [4, 7, 0])


def test_what_is_around_a_token_ends_with_its_context() -> None:
    window, inside = text().around(np.array([3, 7]), 2, 1)
    np.testing.assert_array_equal(np.where(inside, window, -1), [[-1, -1, 3, 4], [-1, 6, 7, -1]])


def test_groups_hold_contexts_of_one_length() -> None:
    assert list(text().groups(100)) == [(0, 6, 3), (6, 8, 2)]
    assert list(text().groups(1)) == [(0, 3, 3), (3, 6, 3), (6, 8, 2)]


def counted(tokens: np.ndarray, batch: np.ndarray, parts: int) -> TokenActivations:
    counter = TokenCounter(tokens, batch.shape[1])
    for rows in np.array_split(batch, parts):
        counter.add(rows)
    return counter.result()


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 7))
def test_the_index_equals_a_plain_transcription(seed: int, parts: int) -> None:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 6, 60) * 7
    batch = random.integers(-2, 4, (60, 9)).astype(np.float32)  # with ties and below zero
    found = counted(tokens, batch, parts)
    pairs = {}
    for token in set(tokens.tolist()):
        rows = batch[tokens == token].clip(0)
        assert found.counts[found.ids.tolist().index(token)] == len(rows)
        for latent in np.flatnonzero(rows.any(axis=0)).tolist():
            pairs[token, latent] = (rows[:, latent].mean(), rows[:, latent].max())
    keys = list(zip(found.ids[found.token].tolist(), found.latent.tolist(), strict=True))
    assert keys == sorted(pairs)
    np.testing.assert_allclose(np.c_[found.mean, found.maximum], [pairs[key] for key in keys])
    by_token = {token: [key for key in keys if key[0] == token] for token, _ in keys}
    expected = []
    for own in by_token.values():  # `sorted` is stable
        chosen = {k for at in (0, 1) for k in sorted(own, key=lambda k: -pairs[k][at])[:2]}
        expected += sorted(sorted(chosen), key=lambda k: -pairs[k][0])
    assert [keys[pair] for pair in found.of_tokens(2)] == expected
    for latent, chosen in enumerate(found.of_latents(3, 9)):
        own = [key for key in keys if key[1] == latent]
        total = {k: pairs[k][0] * (tokens == k[0]).sum() for k in own}
        np.testing.assert_allclose(
            [total[keys[pair]] for pair in chosen], sorted(total.values(), reverse=True)[:3]
        )


def test_only_the_strongest_of_very_many_active_latents_are_counted() -> None:
    batch = np.random.default_rng(0).random((3, MAX_ACTIVE + 50), dtype=np.float32)
    batch[1, 9:] = 0.0
    found = counted(np.array([0, 1, 2]), batch, 2)
    assert np.bincount(found.token).tolist() == [MAX_ACTIVE, 9, MAX_ACTIVE]
    assert found.maximum[found.token == 0].min() == np.sort(batch[0])[50]
