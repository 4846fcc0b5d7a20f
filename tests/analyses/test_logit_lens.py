import numpy as np
import pytest

from palinka.analyses import logit_lens

CLUSTERS = np.repeat([f"text {i}" for i in range(7)], [3, 1, 2, 4, 1, 2, 2])
N = len(CLUSTERS)


def predictions(seed=0, layers=5):
    """What the lens of a model reads, whose second block alone adds something."""
    random = np.random.default_rng(seed)
    shape = layers, N
    logs = -6.0 + 0.1 * random.normal(size=shape)
    logs[2:] += 2.0
    return {
        "target_log_probability": logs,
        "target_rank": random.integers(0, 3, shape),
        "entropy": random.random(shape),
        "kl_to_final": random.random(shape),
        "top_ids": random.integers(0, 9, (*shape, 2)),
        "top_probability": random.random((*shape, 2)),
    }


def test_means_are_over_clusters_and_only_the_block_that_adds_is_significant():
    data = predictions()
    result = logit_lens(**data, clusters=CLUSTERS)
    table = result.tables()["layers"]
    for name in ("target_log_probability", "target_top1", "target_rank", "entropy", "kl_to_final"):
        values = data["target_rank"] == 0 if name == "target_top1" else data[name]
        expected = [
            np.mean([row[text == CLUSTERS].mean() for text in dict.fromkeys(CLUSTERS)])
            for row in values
        ]
        np.testing.assert_allclose(table[name], expected)
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()
    assert (result.p_corrected <= 0.05).tolist() == [False, True, False, False]
    np.testing.assert_allclose(np.diff(table["target_log_probability"]), table["change"][1:])
    scalars = result.scalars()
    assert scalars["largest_change_block"] == 1
    assert scalars["largest_change"] == pytest.approx(result.change[1])
    assert scalars["largest_change_p_value"] == 1 / 64
    assert (scalars["tokens"], scalars["texts_or_templates"]) == (N, 7)
    assert result.notes == ()


def test_the_first_layer_with_the_target_on_top():
    data = predictions(layers=4)
    ranks = np.ones((4, N), dtype=int)
    ranks[1, :8] = ranks[2, 4:11] = ranks[3, 0] = 0
    result = logit_lens(**data | {"target_rank": ranks})
    assert result.layer_of_first_top1.tolist() == [1] * 8 + [2] * 3 + [-1] * 4
    assert result.scalars()["layer_of_first_top1"] == 1.0
    ranks[:, :8] = 5
    result = logit_lens(**data | {"target_rank": ranks})
    assert "layer_of_first_top1" not in result.scalars()  # most tokens have none


def test_few_clusters_have_no_test_and_one_has_no_interval():
    data = predictions()
    result = logit_lens(**data, clusters=np.arange(N) % 5)
    assert result.notes == ("no p-values: a test needs at least 6 texts or templates, given 5",)
    assert np.isnan(result.p).all()
    assert np.isfinite(result.means_low).all()
    result = logit_lens(**data, clusters=[0] * N)
    assert np.isnan(result.means_low).all()
    assert "largest_change_p_value" not in result.scalars()
    assert logit_lens(**data, permutations=0).notes == ()
