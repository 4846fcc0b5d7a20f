import pytest
import torch

from palinka.errors import InputError
from palinka.interventions.metrics import METRICS, Targets, find_metrics

LOGITS = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, -1.0, 4.0, 0.5]])
CLEAN = torch.tensor([[1.0, 3.0, 2.0, 3.0], [2.0, 0.0, 0.0, 0.0]])


def test_outcomes_equal_their_formulas() -> None:
    targets = Targets.of([[2], [0, 2]], [[0, 1], [3]], CLEAN)
    p, q = LOGITS.double().softmax(1), CLEAN.double().softmax(1)
    expected = {
        "logit_difference": [2 - (1 + 3) / 2, (0 + 4) / 2 - 0.5],
        "log_probability": [p[0, 2].log(), (p[1, 0].log() + p[1, 2].log()) / 2],
        "probability": [p[0, 2], (p[1, 0] + p[1, 2]) / 2],
        "rank": [2, (2 + 0) / 2],
        "kl": [0, (q[1] * (q[1] / p[1]).log()).sum()],
    }
    assert set(expected) == set(METRICS)
    for name, function in find_metrics(list(METRICS)).items():
        found = function(LOGITS, targets)
        assert found.dtype == torch.float64
        assert torch.allclose(found, torch.tensor(expected[name]).double(), atol=1e-12)
        swapped = function(LOGITS.flip(0), targets.of_prompts(torch.tensor([1, 0])))
        assert torch.equal(swapped, found.flip(0))


def test_a_logit_difference_needs_no_other_logits() -> None:
    targets = Targets.of([[2], [0, 2]], [[0, 1], [3]], CLEAN)
    ids, narrow = targets.columns()
    found = METRICS["logit_difference"](LOGITS.gather(1, ids), narrow)
    assert torch.equal(found, METRICS["logit_difference"](LOGITS, targets))


def test_an_unknown_outcome_is_rejected() -> None:
    with pytest.raises(InputError, match=r"did you mean 'logit_difference'"):
        find_metrics(["logit_diff"])
