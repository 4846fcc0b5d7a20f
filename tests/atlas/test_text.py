import numpy as np

from palinka.atlas.text import Text
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
