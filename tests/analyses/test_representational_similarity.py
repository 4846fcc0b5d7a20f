"""Representational similarity against a plain transcription of its definition, SciPy and peers."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palinka.analyses.representational_similarity import representational_similarity
from palinka.errors import InputError

COMPARISONS = ("pearson", "spearman", "kendall", "cka")


def random_sites(items, dx, dy, seed, shared=1.0):
    """Two sites that share as much structure as asked."""
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(items, 3))
    return tuple(
        shared * hidden @ random.normal(size=(3, width)) + random.normal(size=(items, width)) + 0.3
        for width in (dx, dy)
    )


def plain_cosines(x):
    matrix = np.zeros((len(x), len(x)))
    for i, a in enumerate(x):
        for j, b in enumerate(x):
            lengths = math.sqrt(math.fsum(a * a)) * math.sqrt(math.fsum(b * b))
            matrix[i, j] = math.fsum(a * b) / lengths if lengths > 0 else 0.0
    return matrix


def plain_triangle(matrix):
    return np.array([matrix[i, j] for i, j in combinations(range(len(matrix)), 2)])


def plain_tau_a(x, y):
    pairs = list(combinations(range(len(x)), 2))
    return sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs) / len(pairs)


def plain_cka(k, l):  # noqa: E741
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n

    def hsic(k, l):  # noqa: E741
        return np.trace(k @ h @ l @ h) / (n - 1) ** 2

    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


def plain_score(k, l, compare):  # noqa: E741
    if compare == "cka":
        return plain_cka(k, l)
    a, b = plain_triangle(k), plain_triangle(l)
    if compare == "kendall":
        return plain_tau_a(a, b)
    return (stats.pearsonr if compare == "pearson" else stats.spearmanr)(a, b)[0]


def plain_selectivity(matrix, groups):
    names = list(dict.fromkeys(groups))
    members = [[i for i, group in enumerate(groups) if group == name] for name in names]
    within = [np.mean([matrix[pair] for pair in combinations(items, 2)]) for items in members]
    between = [
        np.mean([matrix[pair] for pair in product(*two)]) for two in combinations(members, 2)
    ]
    return np.mean(within) / np.mean(between)


@settings(deadline=None)
@given(
    items=st.integers(3, 9),
    widths=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    seed=st.integers(0, 10_000),
    compare=st.sampled_from(COMPARISONS),
    scale=st.sampled_from([1e-150, 1.0, 1e150]),
)
def test_equals_the_definition(items, widths, seed, compare, scale):
    x, y = random_sites(items, *widths, seed)
    result = representational_similarity(x * scale, y, compare=compare)
    np.testing.assert_allclose(result.similarity_x, plain_cosines(x), atol=1e-12)
    np.testing.assert_allclose(result.similarity_y, plain_cosines(y), atol=1e-12)
    expected = plain_score(plain_cosines(x), plain_cosines(y), compare)
    assert result.score == pytest.approx(expected, abs=1e-9)
    assert result.group_scores.shape == (0,)
    assert result.selectivity_x is None
    assert result.p_value is None
    assert result.score_interval is None
    assert result.notes == ()


@settings(deadline=None)
@given(
    groups=st.lists(st.sampled_from("abc"), max_size=5).map(
        lambda rest: [*"aaabbb", *rest, *"ccc"]
    ),
    seed=st.integers(0, 10_000),
    compare=st.sampled_from(COMPARISONS),
)
def test_groups_equal_the_definition_in_order_of_first_appearance(groups, seed, compare):
    x, y = random_sites(len(groups), 5, 4, seed)
    result = representational_similarity(x, y, groups=groups, compare=compare)
    k, l = plain_cosines(x), plain_cosines(y)  # noqa: E741
    members = [np.flatnonzero(np.array(groups) == name) for name in dict.fromkeys(groups)]
    blocks = [np.ix_(items, items) for items in members]
    expected = [plain_score(k[block], l[block], compare) for block in blocks]
    np.testing.assert_allclose(result.group_scores, expected, atol=1e-9)
    assert result.selectivity_x == pytest.approx(plain_selectivity(k, groups), rel=1e-9)
    assert result.selectivity_y == pytest.approx(plain_selectivity(l, groups), rel=1e-9)
    assert result.group_names == tuple(dict.fromkeys(groups))
    table = result.tables()["groups"]
    assert list(table["words"]) == [groups.count(name) for name in result.group_names]
    assert list(table["score"]) == list(result.group_scores)


@pytest.mark.parametrize("compare", ["pearson", "spearman", "kendall"])
def test_ties_count_as_in_the_definition(compare):
    # Axis-aligned words: cosines are exactly 0 or 1, and most pairs tie.
    x, y = np.eye(3)[[0, 0, 1, 1, 2, 2, 2]], np.eye(4)[[0, 0, 0, 1, 1, 2, 3]]
    result = representational_similarity(x, y, compare=compare)
    expected = plain_score(x @ x.T, y @ y.T, compare)
    assert result.score == pytest.approx(expected, abs=1e-12)
    if compare == "kendall":
        tau_b = stats.kendalltau(plain_triangle(x @ x.T), plain_triangle(y @ y.T)).statistic
        assert abs(result.score - tau_b) > 0.005


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize("permutation_seed", range(3))
def test_order_of_words_rotation_and_scale_change_nothing(compare, permutation_seed):
    x, y = random_sites(12, 6, 5, seed=1)
    random = np.random.default_rng(permutation_seed)
    order = random.permutation(12)
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    lengths = random.uniform(0.1, 10, size=(12, 1))
    expected = representational_similarity(x, y, compare=compare).score
    moved = (x @ rotation * lengths)[order], y[order]
    changed = representational_similarity(*moved, compare=compare).score
    assert changed == pytest.approx(expected, abs=1e-12)
    assert representational_similarity(x, 3 * x, compare=compare).score == pytest.approx(1.0)


def test_tensors_of_half_precision_give_scalars_and_arrays_by_the_names_of_the_fields():
    x, y = (torch.tensor(site, dtype=torch.bfloat16) for site in random_sites(12, 6, 5, seed=3))
    result = representational_similarity(x, y, groups=np.array([0, 1] * 6), permutations=50)
    assert result.score == representational_similarity(x.double().numpy(), y.double()).score
    assert result.similarity_x.dtype == np.float64
    assert result.group_names == ("0", "1")
    names = ("score", "selectivity_x", "selectivity_y", "p_value", "score_low", "score_high")
    assert set(result.scalars()) == set(names)
    assert all(type(value) is float for value in result.scalars().values())
    names = {"similarity_x", "similarity_y", "group_scores", "score_interval", "membership", "null"}
    assert set(result.arrays()) == names
    assert result.p_value == (1 + (result.null >= result.score - 1e-12).sum()) / 51
    assert set(representational_similarity(x, y).scalars()) == {"score"}


@pytest.mark.parametrize("compare", COMPARISONS)
def test_seed_alone_decides_p_and_interval(compare):
    x, y = random_sites(10, 6, 5, seed=4, shared=0.3)

    def draw(seed):
        return representational_similarity(x, y, compare=compare, permutations=200, seed=seed)

    assert draw(1).scalars() == draw(1).scalars()
    assert draw(1).scalars() != draw(2).scalars()
    assert draw(1).score == draw(2).score


def test_zero_rows_have_cosine_zero_and_a_note():
    x, y = random_sites(8, 6, 5, seed=5)
    x[2] = 0.0
    result = representational_similarity(x, y, permutations=20)
    assert not result.similarity_x[2].any()
    assert not result.similarity_x[:, 2].any()
    assert result.score == pytest.approx(plain_score(plain_cosines(x), plain_cosines(y), "pearson"))
    assert result.notes[0] == "1 words are all zeros in x: their cosines are 0"


@pytest.mark.parametrize(
    ("compare", "score", "p_value"), [("pearson", math.nan, math.nan), ("kendall", 0.0, 1.0)]
)
def test_constant_similarities_are_no_error(compare, score, p_value):
    x, y = np.ones((5, 3)) * np.arange(1, 6)[:, None], random_sites(5, 3, 3, seed=6)[1]
    result = representational_similarity(x, y, compare=compare, permutations=20)
    assert result.score == pytest.approx(score, nan_ok=True)
    assert result.p_value == pytest.approx(p_value, nan_ok=True)
    assert (result.score_interval is None) == (compare == "pearson")
    assert any("equally similar in x" in note for note in result.notes)


def test_one_group_and_groups_of_two_have_notes_where_nothing_is_defined():
    x, y = random_sites(6, 5, 4, seed=7)
    result = representational_similarity(x, y, groups=["a"] * 6)
    assert math.isnan(result.selectivity_x)
    assert "one group only" in result.notes[0]
    result = representational_similarity(x, y, groups=["a"] * 4 + ["b"] * 2)
    assert math.isnan(result.group_scores[1])
    assert "group 'b' has two words, and so no score" in result.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((2, 3)), "y": np.ones((2, 3))}, r"x has the shape \(2, 3\).*at least 3"),
        ({"y": np.ones((5, 3))}, "x has 6 items and y has 5"),
        ({"x": np.full((6, 3), np.nan)}, "x holds NaN"),
        ({"groups": ["a"] * 5}, "groups has 5 entries for 6 items"),
        ({"compare": "tau"}, "compare is 'tau'; expected 'pearson' or 'spearman'"),
        ({"groups": ["a", "a", "plum", "a", "fig", "a"]}, "groups 'plum', 'fig'"),
    ],
)
def test_refuses_in_one_line(change, message):
    x, y = random_sites(6, 3, 4, seed=8)
    with pytest.raises(InputError, match=message) as refusal:
        representational_similarity(**({"x": x, "y": y} | change))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("compare", ["pearson", "spearman", "kendall"])
def test_agrees_with_rsatoolbox(compare):
    rsatoolbox = pytest.importorskip("rsatoolbox", reason="rsatoolbox is not installed")
    x, y = random_sites(14, 20, 30, seed=9)
    result = representational_similarity(x, y, compare=compare)
    rdms = []
    for site, similarity in ((x, result.similarity_x), (y, result.similarity_y)):
        unit = site / np.linalg.norm(site, axis=1, keepdims=True)
        rdm = rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(unit), method="euclidean")
        # Of unit vectors, its squared distance per channel is 2 (1 − cosine) / channels.
        cosines = 1 - rdm.get_matrices()[0] * site.shape[1] / 2
        np.testing.assert_allclose(similarity, cosines, atol=1e-12)
        rdms.append(rdm)
    method = {"pearson": "corr", "spearman": "spearman", "kendall": "tau-a"}[compare]
    peer = rsatoolbox.rdm.compare(*rdms, method=method)[0, 0]
    assert result.score == pytest.approx(peer, abs=1e-10)
