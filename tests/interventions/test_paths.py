from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.interventions.engine import run
from palinka.interventions.metrics import METRICS
from palinka.interventions.pairs import Pairs
from palinka.interventions.paths import path_outcomes, paths, senders_of
from palinka.interventions.plan import Intervention, Patch
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel

LD = "logit_difference"
RECEIVERS = [
    ["logits"], ["blocks.1.attn.q.1"], ["blocks.2.attn.k.0"], ["blocks.2.attn.v"],
    ["blocks.0.attn.q"], ["blocks.1.mlp.in"], ["blocks.2.attn.q.0", "blocks.2.mlp.in"],
]  # fmt: skip
NORMED = {"gemma2", "gemma3_text", "olmo2"}


def metrics_of(lm: LanguageModel, pairs: Pairs, prompt: int, logits: Tensor) -> dict[str, float]:
    clean = lm.logits(torch.tensor([pairs.clean[prompt]]))[0, -1].double()
    a, b, logits = pairs.answers[prompt], pairs.wrong[prompt], logits.double()
    p, q = logits.softmax(0), clean.softmax(0)
    found = {
        LD: logits[a].mean() - logits[b].mean(), "log_probability": p[a].log().mean(),
        "probability": p[a].mean(), "kl": (q * (q / p).log()).sum(),
        "rank": np.mean([(logits > logits[one]).sum() for one in a]),
    }  # fmt: skip
    return {name: float(x) for name, x in found.items()}


def comes_after(lm: LanguageModel, sender: str, receiver: str) -> bool:
    """In the order of the forward pass, by names."""
    if sender == "hidden.0" or receiver == "logits":
        return True
    (_, i, part, *_), (_, j, kind, *_) = sender.split("."), receiver.split(".")
    serial = "blocks.0.resid_mid" in lm.spec.sites.taps
    return int(j) > int(i) or (j == i and serial and (part, kind) == ("attn", "mlp"))


def write(lm: LanguageModel, ids: Tensor, sender: str) -> Tensor:
    """What a sender adds to the stream, by the weights of its projection."""
    return lm.read(ids, sender.replace("attn.z", "attn.result"))[
        sender.replace("attn.z", "attn.result")
    ]


def received(
    lm: LanguageModel, here: Tensor, there: Tensor, sender: str, receiver: str, through: str
) -> Tensor:
    """Input of a receiver, or the logits' final residual, that sees one write of the other run."""
    layers = lm.spec.sites.layers
    final = f"blocks.{layers - 1}.resid"
    site = final if receiver == "logits" else ".".join(receiver.split(".")[:4])
    if through == "stream":
        mid = receiver.endswith("mlp.in") and "blocks.0.resid_mid" in lm.spec.sites.taps
        block = site.split(".")[1]
        stream = f"blocks.{block}.resid_mid" if mid else f"hidden.{block}"
        stream = final if receiver == "logits" else stream
        changed = lm.read(here, stream)[stream]
        changed = changed + write(lm, there, sender) - write(lm, here, sender)
        with lm.replaced(stream, lambda _: changed):
            return lm.read(here, site)[site]
    attention = [f"blocks.{i}.attn.z" for i in range(layers)]
    frozen, new = lm.read(here, attention), lm.read(there, sender)[sender]
    with ExitStack() as stack:
        for z in attention:
            stack.enter_context(lm.replaced(z, lambda _, own=frozen[z]: own))
        stack.enter_context(lm.replaced(sender, lambda _: new))
        return lm.read(here, site)[site]


def reference(
    lm: LanguageModel, pairs: Pairs, base: str, sender: str, group: list[str], prompt: int,
    through: str,
) -> dict[str, float]:  # fmt: skip
    ids = {"clean": pairs.clean[prompt], "corrupted": pairs.corrupted[prompt]}
    here = torch.tensor([ids.pop(base)])
    (there,) = (torch.tensor([other]) for other in ids.values())
    reached = [name for name in group if comes_after(lm, sender, name)]
    inputs = [received(lm, here, there, sender, name, through) for name in reached]
    with ExitStack() as stack:
        for site, new in zip(reached, inputs, strict=True):
            if site[-1].isdigit():
                size, head = lm.width(site), int(site.split(".")[-1])
                new = new[..., head * size : (head + 1) * size]
            name = f"blocks.{lm.spec.sites.layers - 1}.resid" if site == "logits" else site
            stack.enter_context(lm.replaced(name, lambda _, new=new: new))
        logits = lm.logits(here)[0, -1]
    return metrics_of(lm, pairs, prompt, logits)


@pytest.mark.parametrize("through", ["stream", "mlps"])
@pytest.mark.parametrize("base", ["corrupted", "clean"])
def test_outcomes_are_those_of_single_paths(
    any_model: LanguageModel, pairs: Pairs, base: str, through: Any
) -> None:
    if any_model.spec.sites.family in NORMED:
        pytest.skip("norms what is written to the stream")
    found = path_outcomes(
        any_model, pairs, RECEIVERS, base=base, through=through, metrics=tuple(METRICS)
    )
    senders = senders_of(any_model)
    random = np.random.default_rng([base == "clean", through == "mlps"])
    assert found.values[LD].shape == (len(senders), len(RECEIVERS), 6)
    inexact = any_model.spec.sites.family not in ("gpt2", "gpt_neox", "phi")
    close = 2e-3 if inexact else 1e-9
    at = [(s, r) for s in range(len(senders)) for r in range(len(RECEIVERS))]
    for s, r in random.permutation(at)[:15]:
        prompt = int(random.integers(len(pairs)))
        given = base, senders[s], RECEIVERS[r], prompt, through
        for name, expected in reference(any_model, pairs, *given).items():
            if name == "rank" and inexact:
                continue
            value = found.values[name][s, r, prompt]
            np.testing.assert_allclose(value, expected, atol=close, rtol=close, err_msg=f"{given}")
    effects = found.values[LD] - getattr(found, base)[LD]
    for s, r in at:
        reached = any(comes_after(any_model, senders[s], name) for name in RECEIVERS[r])
        assert reached or (effects[s, r] == 0).all()
    assert (np.abs(effects).max(axis=(0, 2)) > 1e-4).all()


def test_effects_on_logits_without_a_norm_add_up_to_the_gap(
    gpt2: LanguageModel, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpt2.model.transformer._modules, "ln_f", nn.Identity())
    for base in ("corrupted", "clean"):
        found = path_outcomes(gpt2, pairs, [["logits"]], base=base)
        sums = (found.values[LD] - getattr(found, base)[LD]).sum(0)[0]
        gap = found.gap() if base == "corrupted" else -found.gap()
        np.testing.assert_allclose(sums, gap, rtol=1e-9)


def test_the_embeddings_carry_everything_where_mlps_and_attention_do_not(
    gpt2: LanguageModel, pairs: Pairs
) -> None:
    """Through MLPs with attention frozen is the run itself, where no head reads the change."""
    last = [[*ids[:-1], other[-2]] for ids, other in zip(pairs.clean, pairs.corrupted, strict=True)]
    own = Pairs(pairs.clean, last, pairs.answers, pairs.wrong, pairs.templates)
    found = path_outcomes(gpt2, own, [["logits"]], through="mlps", base="clean")
    # A head of the last token reads itself, too: patch its z back.
    plan = [[Intervention("hidden.0", Patch())] + [
        Intervention(f"blocks.{i}.attn.z", Patch("clean"), "end") for i in range(3)
    ]]  # fmt: skip
    expected = run(gpt2, own, plan, base="clean").values[LD]
    np.testing.assert_allclose(found.values[LD][0], expected, rtol=1e-9)


def test_parts_are_maps_of_heads_and_mlps(gpt2: LanguageModel, pairs: Pairs) -> None:
    study = Study(gpt2, pairs, metrics=(LD, "kl"))
    names = ["logits", "blocks.2.attn.q.1"]
    parts = list(paths(study, receivers=names, direction="noise"))
    assert [part.part for part in parts] == [LD, "kl"]
    found = path_outcomes(gpt2, pairs, [[name] for name in names], base="clean")
    data, senders = parts[0].data, senders_of(gpt2)
    for name, axes in data["axes"].items():
        assert data["patched"][name].shape[:-1] == tuple(map(len, axes.values()))
    by_head, mlps, embed = data["patched"].values()
    for values, sender in ((embed, "hidden.0"), (mlps[2], "blocks.2.mlp.write"),
                           (by_head[:, 1, 3], "blocks.1.attn.z.3")):  # fmt: skip
        np.testing.assert_allclose(values, found.values[LD][senders.index(sender)], rtol=1e-12)
    (together,) = paths(Study(gpt2, pairs), receivers=RECEIVERS[-1], jointly=True)
    expected = path_outcomes(gpt2, pairs, RECEIVERS[-1:]).values[LD]
    np.testing.assert_allclose(together.data["patched"]["embed"], expected[0])
    assert together.data["axes"]["heads"]["receiver"] == ["2.q.0 and 2.mlp.in"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (["blocks.1.attn.z.0"], "blocks.1.attn.z.0 reads nothing from the stream; give logits"),
        (["blocks.1.attn.q.7"], "head 7 of block 1; the model has heads 0 to 3"),
        (["logits", "blocks.1.mlp.in"], "logits cannot be patched together"),
    ],
)
def test_impossible_receivers_are_rejected(
    gpt2: LanguageModel, pairs: Pairs, group: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        path_outcomes(gpt2, pairs, [group])


@pytest.mark.parametrize("family", sorted(NORMED))
def test_families_that_norm_what_is_written_are_rejected(
    doubles: dict[str, LanguageModel], pairs: Pairs, family: str
) -> None:
    with pytest.raises(InputError, match=f"{family} norms the sum of what heads write"):
        path_outcomes(doubles[family], pairs, [["logits"]])


def test_nothing_of_the_model_changes(
    gpt2: LanguageModel, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture checks that no hook is left."""
    before = {name: x.clone() for name, x in gpt2.model.state_dict().items()}

    def fail(*_: Any) -> None:
        raise RuntimeError("no room")

    block: NDArray[Any] = gpt2.model.transformer.h[2]
    monkeypatch.setattr(block.mlp, "forward", fail)
    with pytest.raises(RuntimeError, match="no room"):
        path_outcomes(gpt2, pairs, RECEIVERS)
    monkeypatch.undo()
    path_outcomes(gpt2, pairs, RECEIVERS)
    for name, weight in gpt2.model.named_parameters():
        assert torch.equal(weight, before[name])
        assert not weight.requires_grad


def test_small_probabilities_have_small_effects(gpt2: LanguageModel, pairs: Pairs) -> None:
    """A relative change is no less one of a small probability."""
    mini = LanguageModel.from_pretrained("mini", device="cpu")
    names = ("probability", "log_probability")
    found = path_outcomes(mini, pairs, [["logits"]], metrics=names)
    p, log_p = (found.values[name] - found.corrupted[name] for name in names)
    assert found.corrupted["probability"].min() < 1e-6
    one = np.array([len(answers) == 1 for answers in pairs.answers])
    np.testing.assert_array_equal((p != 0)[..., one], (log_p != 0)[..., one])
    assert (p != 0).any(axis=(0, 1)).all()
