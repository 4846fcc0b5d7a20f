import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from palinka.interventions.attribution import attribute
from palinka.interventions.engine import run
from palinka.interventions.pairs import Pairs
from palinka.interventions.paths import path_outcomes, senders_of
from palinka.interventions.plan import Cell, Intervention, Patch
from palinka.language_models import LanguageModel

TOKENS, SITES = 9, {
    "resid_pre": "hidden.{}", "resid_mid": "blocks.{}.resid_mid", "attn_out": "blocks.{}.attn.out",
    "mlp_out": "blocks.{}.mlp.out",
}  # fmt: skip


@pytest.fixture(scope="module")
def bridge() -> tuple[LanguageModel, Any]:
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    lm = LanguageModel.from_pretrained("mini", device="cpu")
    # It forces eager attention on the model it is given, and rewires it.
    lm.model.set_attn_implementation("eager")
    made = bridges.TransformerBridge.boot_transformers(
        "mini", hf_model=copy.deepcopy(lm.model), tokenizer=lm.tokenizer, device="cpu"
    )
    return lm, made.eval()


@pytest.fixture(scope="module")
def pairs(bridge: tuple[LanguageModel, Any]) -> Pairs:
    """Random prompts whose answers are the tokens that clean and corrupted ones differ in most."""
    random = np.random.default_rng(0)
    clean = random.integers(1, 8192, (3, TOKENS))
    corrupted = clean.copy()
    corrupted[:, 2] = random.integers(1, 8192, 3)
    logits = [bridge[0].logits(torch.tensor(ids))[:, -1] for ids in (clean, corrupted)]
    gap = logits[0] - logits[1]
    right, wrong = (f(gap, 1, True).tolist() for f in (torch.argmax, torch.argmin))
    return Pairs(clean.tolist(), corrupted.tolist(), right, wrong, ["random"] * 3)


def peer(bridge: Any, pairs: Pairs, name: str) -> Any:
    from transformer_lens import patching

    answers, wrong = torch.tensor(pairs.answers), torch.tensor(pairs.wrong)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, -1].gather(1, answers) - logits[:, -1].gather(1, wrong))[:, 0]

    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor(pairs.clean))
        patch = getattr(patching, f"get_act_patch_{name}")
        corrupted = torch.tensor(pairs.corrupted)
        return patch(bridge, corrupted, cache, metric, reduce="none", baseline=True)


@pytest.mark.parametrize("name", SITES)
def test_layers_and_positions_equal_transformer_lens(
    bridge: tuple[LanguageModel, Any], pairs: Pairs, name: str
) -> None:
    lm, other = bridge
    layers = range(lm.spec.sites.layers)
    plan: list[Cell] = [
        (Intervention(SITES[name].format(i), Patch(), t),) for i in layers for t in range(TOKENS)
    ]
    outcomes, expected = run(lm, pairs, plan), peer(other, pairs, name)
    values = expected.values.numpy().reshape(len(plan), 3)
    found = outcomes.values["logit_difference"]
    np.testing.assert_allclose(found, values, atol=5e-5)
    gap = outcomes.gap().sum()
    recovery = (found - outcomes.corrupted["logit_difference"]).sum(1) / gap
    theirs = (values - expected.baseline.numpy()).sum(1) / gap
    np.testing.assert_allclose(recovery, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "part"), [("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"), ("pattern", "pattern")]
)
def test_heads_equal_transformer_lens(
    bridge: tuple[LanguageModel, Any], pairs: Pairs, name: str, part: str
) -> None:
    lm, other = bridge
    sites = lm.spec.sites
    names = [
        f"blocks.{i}.attn.{part}.{h}" for i in range(sites.layers) for h in range(sites.heads.count)
    ]
    expected = peer(other, pairs, f"attn_head_{name}_all_pos").values.numpy()
    outcomes = run(lm, pairs, [(Intervention(site, Patch()),) for site in names])
    found = outcomes.values["logit_difference"]
    np.testing.assert_allclose(found, expected.reshape(len(names), 3), atol=5e-5)
    if part == "z":
        places = [(Intervention(site, Patch(), t),) for t in range(TOKENS) for site in names]
        found = run(lm, pairs, places).values["logit_difference"]
        expected = peer(other, pairs, "attn_head_out_by_pos").values.numpy()
        found = found.reshape(TOKENS, sites.layers, sites.heads.count, 3).swapaxes(0, 1)
        np.testing.assert_allclose(found, expected, atol=5e-5)


SITE_OF = {
    "embed": "embed", "attn_head_out": "blocks.{0.layer}.attn.z.{0.head}",
    "mlp_out": "blocks.{0.layer}.mlp.write",
}  # fmt: skip


def test_attributions_equal_transformer_lens(
    bridge: tuple[LanguageModel, Any], pairs: Pairs
) -> None:
    from transformer_lens.tools.analysis import attribution_patch

    lm, other = bridge
    other.requires_grad_(True)  # it differentiates what the embeddings return
    expected: list[dict[Any, float]] = []
    clean, corrupted = torch.tensor(pairs.clean), torch.tensor(pairs.corrupted)

    def difference(prompt: int, logits: torch.Tensor) -> torch.Tensor:
        last, (right,), (wrong,) = logits[..., -1, :], pairs.answers[prompt], pairs.wrong[prompt]
        return (last[..., right] - last[..., wrong]).sum()

    for i in range(len(pairs)):
        both = clean[i : i + 1], corrupted[i : i + 1]
        expected.append(attribution_patch(other, *both, partial(difference, i)).node_scores)
    nodes = list(expected[0])
    plan: list[Cell] = [
        (Intervention(SITE_OF[node.kind].format(node), Patch(), node.position),) for node in nodes
    ]
    found = attribute(lm, pairs, plan)
    estimates = found.values["logit_difference"] - found.corrupted["logit_difference"]
    theirs = np.array([[float(scores[node]) for scores in expected] for node in nodes])
    np.testing.assert_allclose(estimates, theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(theirs).max() > 1.0


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_paths_to_heads_equal_transformer_lens(
    bridge: tuple[LanguageModel, Any], pairs: Pairs, part: Any
) -> None:
    from transformer_lens import patching

    lm, other = bridge
    answers, wrong = torch.tensor(pairs.answers), torch.tensor(pairs.wrong)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, answers) - last.gather(1, wrong)).mean()

    with torch.no_grad():
        _, clean = other.run_with_cache(torch.tensor(pairs.clean))
        _, corrupted = other.run_with_cache(torch.tensor(pairs.corrupted))
        expected = patching.get_act_patch_direct_path(
            other, torch.tensor(pairs.corrupted), clean, corrupted, metric, 0, 1, part, False
        )
    layers, heads = expected.shape
    receivers = [[f"blocks.{i}.attn.{part}.{h}"] for i in range(1, layers) for h in range(heads)]
    found = path_outcomes(lm, pairs, receivers).values["logit_difference"]
    ours = found[senders_of(lm).index("blocks.0.attn.z.1")].mean(1)
    np.testing.assert_allclose(ours, expected[1:].flatten(), atol=5e-5)
