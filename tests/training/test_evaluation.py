import pytest
import torch

from palinka.autoencoders import KSparseAutoencoder
from palinka.training import decorrelation_loss
from palinka.training.losses import Objective, Step, terms_of
from palinka.training.metrics import Evaluation

OBJECTIVE = Objective(2.0, 0.5, 7, 9)


def measured(sae: KSparseAutoencoder, batches: list[torch.Tensor]) -> dict[str, float]:
    evaluation = Evaluation(sae.input_dim, sae.latent_dim)
    for batch in batches:
        evaluation.update(batch, sae(batch), decorrelation=True)
    return {name: value.item() for name, value in evaluation.compute(OBJECTIVE).items()}


def test_everything_is_measured_with_the_full_weights() -> None:
    torch.manual_seed(0)
    sae, x = KSparseAutoencoder(5, 9, 3), torch.randn(20, 5)
    values = measured(sae, [x])
    losses = Objective(2.0, 0.5, 0, 0)(terms_of(sae(x), Step(x, x)), step=0)
    for name, loss in losses.named.items():
        assert values[f"loss/{name}"] == pytest.approx(loss.item(), rel=1e-5)
    assert values["loss/total"] == pytest.approx(losses.total.item(), rel=1e-5)
    assert values["loss/reconstruction"] == values["mse"]
    assert {"fvu", "explained_variance", "cosine", "l0", "l1", "dead"} < values.keys()


def test_all_but_the_decorrelation_is_the_same_under_any_split() -> None:
    torch.manual_seed(0)
    sae, x = KSparseAutoencoder(5, 9, 3), torch.randn(20, 5)
    whole, parts = measured(sae, [x]), measured(sae, [x[:13], x[13:19], x[19:]])
    penalties = [decorrelation_loss(sae.encode(part)).item() for part in (x[:13], x[13:19])]
    assert parts["loss/decorrelation"] == pytest.approx(
        0.5 * (12 * penalties[0] + 5 * penalties[1]) / 17, rel=1e-6
    )
    for name in whole.keys() - {"loss/decorrelation", "loss/total"}:
        assert parts[name] == pytest.approx(whole[name], rel=1e-6)


def test_a_process_that_gets_no_rows_of_a_batch_adds_nothing() -> None:
    torch.manual_seed(0)
    sae, x = KSparseAutoencoder(5, 9, 3), torch.randn(20, 5)
    assert measured(sae, [x, x[:0]]) == measured(sae, [x])


def test_forgetting() -> None:
    sae = KSparseAutoencoder(5)
    evaluation = Evaluation(5, 10)
    evaluation.update(torch.randn(8, 5) * 100, sae(torch.randn(8, 5)), decorrelation=True)
    evaluation.reset()
    x = torch.randn(8, 5)
    evaluation.update(x, sae(x), decorrelation=False)
    again = Evaluation(5, 10)
    again.update(x, sae(x), decorrelation=False)
    torch.testing.assert_close(evaluation.compute(OBJECTIVE), again.compute(OBJECTIVE))
    assert again.compute(OBJECTIVE)["loss/decorrelation"] == 0.0
