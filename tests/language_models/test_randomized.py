import typing
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.randomized import token_order
from palinka.language_models.spec import Mode

TEXTS = ["The river was wide, and the water was still.", "I saw him.", "Yes"]


def weights(model: LanguageModel) -> dict[str, Tensor]:
    return dict(model.model.named_parameters())


@pytest.mark.parametrize("mode", ["permuted", "gaussian", "initial"])
def test_weights_are_randomized_but_for_embeddings_and_norms(
    any_model: LanguageModel, mode: str
) -> None:
    control = any_model.randomized(mode)  # type: ignore[arg-type]
    before, after = weights(any_model), weights(control)
    ends = ["wte", "wpe", "embed_in", "embed_out", "embed_tokens", "lm_head"]
    for name, weight in before.items():
        module = name.split(".")[-2]
        kept = module in ends or "norm" in module or module.startswith("ln_")
        assert torch.equal(after[name], weight) == kept, name
        if mode == "permuted" and not kept:
            assert torch.equal(after[name].flatten().sort()[0], weight.flatten().sort()[0])
        if mode == "gaussian" and not kept and weight.numel() > 500:
            torch.testing.assert_close(after[name].std(), weight.std(), rtol=0.15, atol=0.0)
    whole = any_model.randomized(mode, "randomize", "randomize")  # type: ignore[arg-type]
    # Norms of weight 1 and biases of 0 stay under permutation and initialization.
    assert not any(
        torch.equal(weights(whole)[name], weight)
        for name, weight in before.items()
        if weight.ndim > 1
    )
    table, head = whole.model.get_input_embeddings(), whole.model.get_output_embeddings()
    tied = (
        any_model.model.get_output_embeddings().weight
        is any_model.model.get_input_embeddings().weight
    )
    assert (table.weight is head.weight) == tied


@pytest.mark.parametrize("mode", typing.get_args(Mode))
def test_a_control_follows_from_its_seed(gpt2: LanguageModel, mode: str) -> None:
    site = "blocks.1.resid"
    first, again, other = (
        gpt2.randomized(mode, seed=seed).read(TEXTS, site)[site]  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first, again, rtol=0.0, atol=0.0)
    assert not torch.equal(first, other)
    assert not torch.equal(first, gpt2.read(TEXTS, site)[site])
    control = gpt2.randomized(mode)  # type: ignore[arg-type]
    alone = control.read(TEXTS[1], site)[site]
    torch.testing.assert_close(first[1, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)


def test_tokens_are_read_in_random_order_and_returned_in_theirs(gpt2: LanguageModel) -> None:
    control = gpt2.randomized("tokens")
    read = control.read(TEXTS, ["embed", "blocks.1.resid"])
    torch.testing.assert_close(read["embed"], gpt2.read(TEXTS, "embed")["embed"])
    clean = gpt2.read(TEXTS, "blocks.1.resid")
    apart = (read["blocks.1.resid"] - clean["blocks.1.resid"]).abs().amax(dim=2)
    assert (apart[:, 0] < 1e-5).all()  # the first token stays
    assert (apart[0, 1:] > 1e-3).sum() >= 6
    ids = torch.arange(300, 309)[None]
    order = token_order(ids, None, seed=0)[0]
    shuffled = gpt2.logits(ids[:, order])
    torch.testing.assert_close(control.logits(ids)[:, order], shuffled)


def test_coordinates_are_shuffled_in_every_vector_that_is_read(gpt2: LanguageModel) -> None:
    control, sites = gpt2.randomized("coordinates"), ["embed", "blocks.1.resid"]
    found, clean = control.read(TEXTS, sites), gpt2.read(TEXTS, sites)
    for site in sites:
        torch.testing.assert_close(found[site].sort().values, clean[site].sort().values)
    ids = torch.full((1, 9), 300)
    one, other = control.read(ids, "embed")["embed"][0, 7:]
    assert not torch.equal(one, other)
    torch.testing.assert_close(control.logits(ids), gpt2.logits(ids))


def test_random_embeddings_have_no_token(gpt2: LanguageModel) -> None:
    read = gpt2.randomized("embeddings").read(torch.full((1, 60), 300), "embed")["embed"][0]
    table = gpt2.model.get_input_embeddings().weight
    assert len(read.unique(dim=0)) == 60
    torch.testing.assert_close(read.std(), table.std(), rtol=0.1, atol=0.0)


def test_the_fingerprint_and_identity_hold_the_control() -> None:
    spec = LanguageModelSpec()
    assert "control" not in spec.fingerprint()
    known = [replace(spec, control="permuted", control_seed=seed) for seed in (0, 1)]
    known += [replace(known[0], control_norms="randomize"), replace(known[0], control="gaussian")]
    assert len({str(one.fingerprint()) for one in [spec, *known]}) == 5
    assert len({one.identity() for one in [spec, *known]}) == 5
    assert known[0].identity().endswith("(permuted, keep embeddings, keep norms, seed 0)")
