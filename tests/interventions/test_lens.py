from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from language_models.conftest import CONFIGS, folders, unhooked
from palinka.interventions.lens import frozen_direction
from palinka.language_models import LanguageModel

__all__ = ["folders"]
IDS = torch.from_numpy(np.random.default_rng(0).integers(1, 8192, (3, 7)))
ANSWERS, WRONG = [[5], [6, 7], [8]], [[9, 10], [11], [12]]
EXACT = {"atol": 1e-10, "rtol": 1e-10}
# Their norms compute in float32, whatever the dtype of the model.
INEXACT = {"atol": 1e-4, "rtol": 1e-5}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def any_model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[LanguageModel]:
    """Random models of all families, in float64."""
    folder = str(folders[request.param])
    yield from unhooked(LanguageModel.from_pretrained(folder, dtype="float64", device="cpu"))


def tolerance(model: LanguageModel) -> dict[str, float]:
    return EXACT if model.spec.sites.family in ("gpt2", "gpt_neo", "gpt_neox", "phi") else INEXACT


def difference(logits: torch.Tensor, wrong: list[list[int]] | None) -> torch.Tensor:
    """Mean logit of the answers minus that of the wrong ones, row by row."""
    pairs = zip(logits, ANSWERS, wrong or [slice(None)] * len(logits), strict=True)
    return torch.stack([row[right].mean() - row[other].mean() for row, right, other in pairs])


@pytest.mark.parametrize("wrong", [WRONG, None])
def test_parts_of_the_residual_and_a_constant_add_up_to_the_logit_difference(
    any_model: LanguageModel, wrong: list[list[int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_model.model.config, "final_logit_softcapping", None, raising=False)
    writes = [f"blocks.{i}.{part}.write" for i in range(3) for part in ("attn", "mlp")]
    sites = ["hidden.0", *writes]
    acts = any_model.read(IDS, [*sites, "blocks.2.resid"])
    last = acts["blocks.2.resid"][:, -1]
    functional, constant = frozen_direction(any_model, last, ANSWERS, wrong)
    parts = torch.stack([(acts[site][:, -1] * functional).sum(1) for site in sites])
    expected = difference(any_model.logits(IDS)[:, -1], wrong)
    torch.testing.assert_close(parts.sum(0) + constant, expected, **tolerance(any_model))
    assert parts.abs().mean() > 0.1
    assert bool(constant.abs().max() > 1e-3) == (tolerance(any_model) is EXACT)
