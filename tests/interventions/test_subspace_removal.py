from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from palinka.autoencoders import TopKAutoencoder
from palinka.errors import InputError
from palinka.interventions.pairs import Pairs
from palinka.interventions.study import Measured, Study
from palinka.interventions.subspace_removal import (
    dormant_share,
    matched,
    removed_variance,
    subspace_removal,
)
from palinka.language_models import LanguageModel

SITE = "hidden.1"
TEXTS = {"him": [[5, 6, 7], [9, 8, 7, 6]], "her": [[5, 60, 7], [9, 80, 7, 6]]}


def measured(lm: LanguageModel, pairs: Pairs, **settings: Any) -> Measured:
    width = lm.width(SITE)
    torch.manual_seed(0)
    dictionaries = {SITE: TopKAutoencoder(width, 2 * width, k=3).double()}
    random = np.random.default_rng(0)
    arrays = {"pattern_a": random.random(width), "components": random.random((width, 2)),
             "filters_a": random.random((2, 2)), "long": 1000 * np.eye(width)[0]}  # fmt: skip
    study = Study(
        lm, pairs, sites=[SITE], texts=lambda _: TEXTS, dictionaries=dictionaries,
        findings=lambda *_: arrays,
    )  # fmt: skip
    (found,) = subspace_removal(study, **{"draws": 3, **settings})
    return found


def slow_rows(lm: LanguageModel, texts: Any) -> list[torch.Tensor]:
    return [lm.read(torch.tensor([list(ids)]), SITE)[SITE][0, 1:] for ids in texts]


@pytest.mark.parametrize("kind", ["principal components", "contrast", "latents", "pattern"])
def test_outcomes_are_those_of_runs_with_a_hook(
    gpt2: LanguageModel, pairs: Pairs, kind: str
) -> None:
    rows = torch.cat(slow_rows(gpt2, pairs.corrupted))
    mean = rows.mean(0)
    settings: dict[str, Any] = {"ranks": [2]}
    if kind == "contrast":
        a, b = (torch.stack([x.mean(0) for x in slow_rows(gpt2, of)]) for of in TEXTS.values())
        basis, settings = (b.mean(0) - a.mean(0))[:, None], {"ranks": [1], "contrast": "file"}
        basis /= basis.norm()
    elif kind == "latents":
        settings["latents"] = [4, 1]
        torch.manual_seed(0)
        written = TopKAutoencoder(len(mean), 2 * len(mean), k=3).double().dictionary.detach()
        basis = torch.linalg.qr(written[[4, 1]].T)[0]
    elif kind == "pattern":
        random = np.random.default_rng(0)
        basis = torch.from_numpy(random.random(len(mean)))[:, None]
        filters = random.random((len(mean), 2)) @ random.random((2, 2))[:, :1]
        read = torch.from_numpy(filters) / (torch.from_numpy(filters).T @ basis)
        settings = {"ranks": [1], "selection": {"analysis": "ged", "by": "pattern_a"}}
    else:
        scatter = (rows - mean).T @ (rows - mean)
        basis = torch.linalg.eigh(scatter).eigenvectors[:, -2:]
    read = read if kind == "pattern" else basis

    def without(h: Tensor) -> Tensor:
        return h - (h - mean) @ read @ basis.T

    found = measured(gpt2, pairs, **settings, text="file", text_tokens=6)
    (lost,), data = found.context["lost"].values(), found.data
    clean_and_changed = []
    for function in (lambda h: h, without):
        with gpt2.replaced(SITE, function):
            logits = gpt2.logits(torch.tensor([TEXTS["her"][0]]))[0].log_softmax(-1)
        clean_and_changed.append(logits[[0, 1], [60, 7]])
    expected = clean_and_changed[0] - clean_and_changed[1]
    np.testing.assert_allclose(lost[3:6], [0.0, *expected], atol=1e-8)
    assert found.context["tokens"][4] == str(gpt2.tokenizer.decode([60])).encode()
    for i, ids in enumerate(pairs.clean):
        with gpt2.replaced(SITE, without):
            logits = gpt2.logits(torch.tensor([ids]))[0, -1]
        expected = logits[pairs.answers[i]].mean() - logits[pairs.wrong[i]].mean()
        np.testing.assert_allclose(data["removed"][0, 0, i], expected, atol=1e-8)
        clean = gpt2.logits(torch.tensor([ids]))[0, -1].log_softmax(-1)
        kl = (clean.exp() * (clean - logits.log_softmax(-1))).sum()
        np.testing.assert_allclose(data["kl"][0, 0, i], kl, atol=1e-8)
    share = ((rows - mean) @ read @ basis.T).square().sum() / (rows - mean).square().sum()
    np.testing.assert_allclose(data["variance_removed"], [[share]], atol=1e-10)
    assert data["controls"]["isotropic"].shape == (1, 1, 3, len(pairs))


def test_long_directions_are_not_the_main_ones(gpt2: LanguageModel, pairs: Pairs) -> None:
    found = measured(gpt2, pairs, ranks=[1], contrast="file", selection={"by": "long"})
    a, b = (torch.stack([x.mean(0) for x in slow_rows(gpt2, of)]) for of in TEXTS.values())
    longer = 1000 * torch.eye(gpt2.width(SITE))[0].double()
    both = [x / x.norm() for x in (b.mean(0) - a.mean(0), longer)]
    both[1] *= both[0][0].sign()
    main = both[0] + both[1]
    rows = torch.cat(slow_rows(gpt2, pairs.corrupted))
    rows -= rows.mean(0)
    share = (rows @ main / main.norm()).square().sum() / rows.square().sum()
    np.testing.assert_allclose(found.data["variance_removed"], [[share]], atol=1e-10)


def test_what_a_block_does_not_write_is_dormant(any_model: LanguageModel, pairs: Pairs) -> None:
    site = "blocks.1.mlp.post"
    unit = torch.randn(any_model.width(site), generator=torch.Generator().manual_seed(0)).double()
    ids, found = torch.tensor([[5, 6]]), []
    for push in (torch.eye(len(unit), dtype=unit.dtype), torch.zeros(1, len(unit))):
        written = []
        for row in push:
            with any_model.replaced(site, lambda h, row=row: torch.zeros_like(h) + row.to(h)):  # type: ignore[misc]
                written.append(any_model.read(ids, "blocks.1.mlp.out")["blocks.1.mlp.out"][0, 0])
        found.append(torch.stack(written).double())
    rows = found[0] - found[1]
    dormant = unit - rows @ torch.linalg.pinv(rows, rtol=1e-5) @ unit
    expected = float((dormant.norm() / unit.norm()) ** 2)
    space = (unit / unit.norm()).numpy()[:, None]
    assert dormant_share(any_model, site, space) == pytest.approx(expected, abs=1e-4)
    assert np.isnan(dormant_share(any_model, SITE, space))


def test_controls_remove_as_much_variance() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((40, 40)) * np.linspace(3, 0.1, 40)
    for share in (0.1, 0.4, 0.8):
        spaces = [matched(rows, share, random) for _ in range(20)]
        for space in spaces:
            np.testing.assert_allclose(space.T @ space, np.eye(space.shape[1]), atol=1e-10)
            assert abs(removed_variance(rows, space)[-1] / share - 1) <= 0.05
        assert len({space[0, 0] for space in spaces}) == 20


def test_a_basis_needs_enough_directions(gpt2: LanguageModel, pairs: Pairs) -> None:
    for ranks in ([1, 2], [0]):
        with pytest.raises(InputError, match=r"at hidden.1 has 1 direction; give ranks from 1 to"):
            measured(gpt2, pairs, contrast="file", ranks=ranks)
