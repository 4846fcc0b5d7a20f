import numpy as np
import pytest
import torch

from palinka.autoencoders import TopKAutoencoder
from palinka.cli.evaluate import _groups
from palinka.data import Correlation, Firing, Hierarchy, StructuredData
from palinka.errors import InputError
from palinka.evaluation.recovery import recovery
from palinka.evaluation.values import Dictionary

DATA = StructuredData(
    12, 40, Firing(0.3, 0.05), hierarchy=Hierarchy(2, 2, 1), correlation=Correlation(3, 0.1)
)


class Oracle:
    """The true directions, and features as exact as their pseudoinverse makes them."""

    def __init__(self, lost: int) -> None:
        self._lost = lost

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        z = x @ torch.linalg.pinv(DATA.directions)
        z = z * (z > 0.5)
        z[:, self._lost :] = 0.0
        return z

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ DATA.directions


def test_the_truth_is_recovered() -> None:
    one = Dictionary("a", "a", 0, Oracle(12), "Oracle", 12, "", DATA.directions.numpy())
    group = recovery([one], DATA, rows=3000, seed=1)
    found = {m.metric: m for m in group.measurements}
    ones = ("mcc", "uniqueness", "coverage", "f1", "f1_matched", "accuracy", "shrinkage",
            "explained_variance", "absorption_rated", "hedging_rated")  # fmt: skip
    np.testing.assert_allclose([found[name].value for name in ones], 1.0, atol=1e-3)
    zeros = ("dead", "absorption", "hedging")
    np.testing.assert_allclose([found[name].value for name in zeros], 0.0, atol=1e-3)
    true = (DATA.sample(3000, 1).latents > 0).sum(dim=1).double()
    assert found["l0"].value == pytest.approx(true.mean().item())
    error = np.sqrt(np.square(found["l0"].influence).sum())
    assert error == pytest.approx(true.std().item() / np.sqrt(3000), rel=1e-3)
    assert found["mcc"].method.startswith("none")
    assert not group.values


def test_latents_that_are_lost_lower_the_scores_and_random_dictionaries_are_beside() -> None:
    def trained(seed: int) -> Dictionary:
        torch.manual_seed(seed)
        own = TopKAutoencoder(40, 24, k=2).eval()
        w = own.dictionary.detach().numpy()
        return Dictionary(f"k{seed}", "topk", seed, own, "TopK", 24, "", w)

    lost = Dictionary("lost", "lost", 0, Oracle(9), "Oracle", 12, "", DATA.directions.numpy())
    group = recovery([lost, *map(trained, range(3))], DATA, rows=2000)
    found = {m.metric: m.value for m in group.measurements if m.of == "lost"}
    assert (found["dead"], found["recall"]) == (3 / 12, pytest.approx(9 / 12))
    assert (found["recall_alive"], found["mcc"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found["explained_variance"] < 0.99 > found["shrinkage"]
    controls = {v.metric: v for v in group.values}
    assert {v.of for v in group.values} == {"random_dictionary of topk"}
    assert (controls["mcc"].n["seeds"], controls["mcc"].method) == (3, "t over seeds")
    assert 0.0 < controls["l0"].value <= 2.0
    assert controls["mcc"].low < controls["mcc"].value < controls["mcc"].high < 0.8


def test_reconstruction_scores_equal_those_of_sae_lens() -> None:
    theirs = pytest.importorskip("sae_lens.synthetic.evals")
    one = Dictionary("a", "a", 0, Oracle(9), "Oracle", 12, "", DATA.directions.numpy())
    x = DATA.sample(2000, 0).x
    found = {m.metric: m.value for m in recovery([one], DATA, rows=2000).measurements}
    for name, kind in (
        ("shrinkage", theirs.ShrinkageCalculator),
        ("explained_variance", theirs.ExplainedVarianceCalculator),
    ):
        calculator = kind()
        calculator.add_batch(Oracle(9).decode(Oracle(9).encode(x)), x)
        assert found[name] == pytest.approx(calculator.compute(), abs=1e-6)


def test_recovery_is_measured_on_synthetic_data_only() -> None:
    with pytest.raises(InputError, match="recovery: these activations come from a language model"):
        _groups(["recovery"], {}, {})
