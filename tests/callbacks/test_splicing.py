import numpy as np
import pytest
import torch
from torch import Tensor

from palinka.analyses.reader import ActivationReader
from palinka.analyses.stats.bootstrap import document_intervals
from palinka.autoencoders import KSparseAutoencoder
from palinka.data import Context
from palinka.language_models import LanguageModel
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.loss_recovered import (
    COLUMNS,
    ERROR_RATIOS,
    RATIOS,
    patched_losses,
    sum_over_processes,
)

SITE, LATER = "blocks.3.mlp.pre", "blocks.4.resid"


@pytest.fixture(scope="module")
def model(mini: ActivationReader) -> LanguageModel:
    return mini.model


@pytest.fixture(scope="module")
def autoencoder(model: LanguageModel) -> SparseAutoencoderModule:
    torch.manual_seed(0)
    width = model.width(SITE)
    made = SparseAutoencoderModule(KSparseAutoencoder(width, 2 * width, k=32, unit_norm=True))
    made.scaling.set(0.1 * torch.randn(width), 0.5)
    return made.eval()


@pytest.fixture(scope="module")
def blocks() -> list[Context]:
    """Five contexts, of which the last is shorter, from three documents."""
    random = np.random.default_rng(0)
    documents = [[4] * 12, [4] * 5 + [7] * 7, [7] * 12, [7] * 2 + [9] * 10, [9] * 6]
    return [
        Context(random.integers(0, 8192, len(row)), np.array(row), np.arange(len(row)))
        for row in documents
    ]


MEAN = np.random.default_rng(1).normal(size=512)


def plain(
    model: LanguageModel, autoencoder: SparseAutoencoderModule, blocks: list[Context], skip: int
) -> dict[int, np.ndarray]:
    """Context by context in float64, with the replaced activations computed by hand."""
    found: dict[int, np.ndarray] = {}
    for block in blocks:
        ids = torch.from_numpy(block.tokens)[None]
        x = model.read(ids, [SITE])[SITE]
        others = {
            "spliced": autoencoder(x).reconstruction.detach(),
            "ablated": torch.zeros_like(x),
            "ablated_mean": torch.from_numpy(MEAN).to(x).expand_as(x),
        }
        log_p = {"clean": model.logits(ids).double().log_softmax(-1)[0, :-1]}
        later = {"clean": model.read(ids, [LATER])[LATER][0]}
        for name, values in others.items():
            whole = torch.cat([x[:, :skip], values[:, skip:]], dim=1)

            def constant(_: Tensor, whole: Tensor = whole) -> Tensor:
                return whole

            with model.replaced(SITE, constant):
                log_p[name] = model.logits(ids).double().log_softmax(-1)[0, :-1]
                later[name] = model.read(ids, [LATER])[LATER][0]
        for place, (token, document) in enumerate(
            zip(block.tokens[1:], block.documents[1:], strict=True)
        ):
            row = [1.0] + [-float(log_p[name][place, token]) for name in log_p]
            p, q = log_p["clean"][place], log_p["spliced"][place]
            row.append(float((p.exp() * (p - q)).sum()))
            for name in ("spliced", "ablated_mean"):
                moved = (later[name] - later["clean"])[place + 1].double()
                row.append(float(moved.square().mean()))
            found[int(document)] = found.get(int(document), np.zeros(8)) + row
    return found


@pytest.mark.parametrize("skip", [0, 1])
def test_it_agrees_with_a_direct_computation(
    skip: int, model: LanguageModel, autoencoder: SparseAutoencoderModule, blocks: list[Context]
) -> None:
    documents, sums = patched_losses(
        model, SITE, autoencoder, MEAN, blocks, skip=skip, batch_size=3, error_site=LATER
    )
    expected = plain(model, autoencoder, blocks, skip)
    assert documents.tolist() == sorted(expected) == [4, 7, 9]
    direct = np.stack([expected[document] for document in sorted(expected)])
    np.testing.assert_allclose(sums / sums[:, :1], direct / sums[:, :1], rtol=1e-6, atol=1e-6)
    values = document_intervals(sums, {**RATIOS, **ERROR_RATIOS})
    total = dict(zip(COLUMNS, direct.sum(axis=0), strict=True))
    clean, spliced, ablated = (total[f"ce_{name}"] for name in ("clean", "spliced", "ablated"))
    assert values["loss_recovered"].value == pytest.approx(
        (ablated - spliced) / (ablated - clean), abs=1e-5
    )
    assert values["ce_delta"].value == pytest.approx((spliced - clean) / 49, abs=1e-6)
    assert values["site_mse"].value == pytest.approx(total["error_spliced"] / 49, rel=1e-5)
    assert values["site_recovered"].value == pytest.approx(
        1 - total["error_spliced"] / total["error_ablated_mean"], abs=1e-5
    )


def test_any_number_of_processes_and_any_batch_size_find_the_same(
    model: LanguageModel, autoencoder: SparseAutoencoderModule, blocks: list[Context]
) -> None:
    documents, sums = patched_losses(model, SITE, autoencoder, MEAN, blocks, batch_size=2)
    parts = [
        patched_losses(model, SITE, autoencoder, MEAN, blocks, batch_size=2, share=(rank, 4))
        for rank in range(4)
    ]
    assert any(len(own) == 0 for own, _ in parts)  # three batches for four processes
    together = sum_over_processes(
        np.concatenate([own for own, _ in parts]),
        np.concatenate([table for _, table in parts]),
        torch.device("cpu"),
    )
    np.testing.assert_array_equal(together[0], documents)
    np.testing.assert_allclose(together[1], sums, rtol=1e-12)
    for size in (1, None):
        _, other = patched_losses(model, SITE, autoencoder, MEAN, blocks, batch_size=size)
        np.testing.assert_allclose(other, sums, rtol=1e-5)


def test_what_changes_nothing_recovers_everything(
    model: LanguageModel, blocks: list[Context]
) -> None:
    class Identity:
        def encode(self, x: Tensor) -> Tensor:
            return x

        def decode(self, latents: Tensor) -> Tensor:
            return latents

    _, sums = patched_losses(model, SITE, Identity(), MEAN, blocks, error_site=SITE)
    found = document_intervals(sums, {**RATIOS, **ERROR_RATIOS})
    assert (found["site_mse"].value, found["site_recovered"].value) == (0.0, 1.0)
    assert found["kl"].value == 0.0
    assert found["loss_recovered"].value == found["loss_recovered_mean"].value == 1.0
    assert abs(found["ce_ablated"].value - found["ce_clean"].value) > 1e-3
