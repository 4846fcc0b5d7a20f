import numpy as np
import pytest

from palinka.analyses import direct_logit_attribution
from palinka.errors import InputError

CLUSTERS = np.repeat(np.arange(8), 3)


def contributions(seed=0):
    """Two layers whose second MLP, and one head, write the answer."""
    random = np.random.default_rng(seed)
    noise = {"heads": (2, 3), "mlp.out": (2,), "constant": ()}
    found = {name: 0.1 * random.normal(size=(*shape, 24)) for name, shape in noise.items()}
    found["mlp.out"][1] += 2.0
    found["heads"][0, 1] -= 0.5
    found["attn.out"] = found["heads"].sum(1)
    total = found["attn.out"].sum(0) + found["mlp.out"].sum(0) + found["constant"]
    return found, total


def test_means_shares_and_significance_of_contributions():
    found, total = contributions()
    result = direct_logit_attribution(found, total, CLUSTERS)
    effect, share, significant = map(
        result.maps, (result.effect, result.recovery, result.significant)
    )
    for name, values in found.items():
        np.testing.assert_allclose(effect[name], values.mean(-1))
        np.testing.assert_allclose(share[name], values.sum(-1) / total.sum())
    parts = share["attn.out"].sum() + share["mlp.out"].sum() + share["constant"]
    np.testing.assert_allclose(parts, 1.0)
    assert significant["mlp.out"].tolist() == [False, True]
    assert significant["heads"].tolist() == [[False, True, False], [False] * 3]
    assert (result.gap, result.clean, result.corrupted) == (
        pytest.approx(total.mean()), pytest.approx(total.mean()), 0.0,
    )  # fmt: skip
    assert result.prompts_solved == (total > 0).mean() == 1.0
    assert result.axes["heads"] == {"layer": range(2), "head": range(3)}
    assert result.arrays()["heads/effects"].shape == (2, 3, 24)
    mlp, head = effect["mlp.out"][1], effect["heads"][0, 1]
    attention = effect["attn.out"][0]
    line = result.headline("units", ())
    assert "cells contribute to the logit difference (sign flips of 8 clusters" in line
    of = "of the logit difference"
    assert line.split("strongest: ")[1].split("; ") == [
        f"mlp.out layer 1 {mlp:+.3g}, {mlp / total.mean():.0%} {of}, p 0.00781",
        f"heads layer 0 head 1 {head:+.3g}, {head / total.mean():.0%} {of}, p 0.00781",
        f"attn.out layer 0 {attention:+.3g}, {attention / total.mean():.0%} {of}, p 0.00781",
    ]
    assert result.notes == ("8 templates: percentile intervals of fewer than 10 are too narrow",)


def test_the_headline_names_one_component_at_least_and_no_sum_of_others():
    found, total = contributions()
    sums = {"resid": np.stack([0.0 * total, total])}
    for given, strongest in ((found | sums, "mlp.out layer 1"), (sums, "resid layer 1")):
        line = direct_logit_attribution(given, total, CLUSTERS, permutations=0).headline("", ())
        assert f"strongest: {strongest} +" in line
        assert ";" not in line.split("strongest")[1]


def test_tokens_of_texts_are_no_units_of_inference():
    found, total = contributions()
    five = np.arange(24) % 5
    with pytest.raises(InputError, match=r"^5 templates; .*, or set clusters_by: prompt; or set"):
        direct_logit_attribution(found, total, five)
    with pytest.raises(InputError, match=r"^5 texts; .* needs at least 6: add texts; or set"):
        direct_logit_attribution(found, total, five, unit="text")
    with pytest.raises(InputError, match=r"^clusters_by: prompt takes tokens of one text as"):
        direct_logit_attribution(found, total, CLUSTERS, unit="text", clusters_by="prompt")
    result = direct_logit_attribution(found, total, CLUSTERS, unit="text")
    assert result.notes == ("8 texts: percentile intervals of fewer than 10 are too narrow",)


def test_a_logit_difference_that_may_be_zero_is_noted():
    found, _ = contributions()
    total = np.where(CLUSTERS % 2, 1.0, -1.0) + 0.1
    result = direct_logit_attribution(found, total, CLUSTERS)
    assert result.notes[-1] == (
        "the interval of the logit difference contains 0: shares of it mean nothing"
    )
    assert not any("corrupted" in note for note in result.notes)
    assert result.prompts_solved == 0.5
