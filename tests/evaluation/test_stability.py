from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from scipy.special import stdtrit

from palinka.analyses import latent_stability
from palinka.autoencoders import KSparseAutoencoder, TopKAutoencoder
from palinka.data import Context
from palinka.data.synthetic import Firing, StructuredData
from palinka.errors import InputError
from palinka.evaluation.core import core
from palinka.evaluation.stability import _of_partners, _value, stability
from palinka.evaluation.values import Dictionary, Subject, Value
from palinka.language_models import LanguageModel

SITE, LATENTS, SHARED = "blocks.3.mlp.pre", 96, 48


def dictionary(seed: int, tied: bool = True) -> Dictionary:
    """Half of the latents are those of every seed, in another order."""
    torch.manual_seed(99)
    common = torch.randn(LATENTS, 512)
    torch.manual_seed(seed)
    kind = KSparseAutoencoder if tied else TopKAutoencoder
    autoencoder = kind(512, LATENTS, k=16).eval()
    rows = torch.cat([common[:SHARED], torch.randn(LATENTS - SHARED, 512)])[torch.randperm(LATENTS)]
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(rows / rows.norm(dim=1, keepdim=True))
        if not tied:
            autoencoder.decoder_weight.copy_(autoencoder.encoder.weight)
    decoder = autoencoder.dictionary.detach().numpy()
    return Dictionary(
        f"seed={seed}", "wide", seed, autoencoder, kind.__name__, LATENTS, "", decoder
    )


@pytest.fixture(scope="module")
def subject() -> Subject:
    random = np.random.default_rng(0)
    contexts = [
        Context(random.integers(0, 400, n), np.full(n, i), np.arange(n))
        for i, n in enumerate([40] * 9 + [30] * 3)
    ]
    ones = tuple(dictionary(seed) for seed in range(3))
    model = LanguageModel.from_pretrained("mini")
    return Subject(model, SITE, ones, lambda: iter(contexts), 1, False, np.zeros(512))


def test_shared_latents_reappear_and_the_others_are_ablated(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = stability(subject)
    values = {value.metric: value for value in group.values}
    share = values["stability_share_0.7"]
    assert share.value == pytest.approx(0.5, abs=0.06)
    assert (share.n, share.of, share.method) == ({"seeds": 3}, "wide", "jackknife over seeds")
    assert values["stability_activation_correlation"].value == pytest.approx(1.0, abs=0.15)
    assert "stability_encoder_cosine" not in values  # the encoder is the decoder
    # The same metrics by hand: latents without a partner are zeroed.
    one = subject.dictionaries[0]
    unstable = torch.from_numpy(group.arrays[f"reappears/{one.name}"] < 0.5)

    class Without(KSparseAutoencoder):
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return super().encode(x).masked_fill(unstable, 0.0)

    without = Without(512, LATENTS, k=16).eval()
    without.load_state_dict(one.autoencoder.state_dict())  # type: ignore[attr-defined]
    expected = core(replace(subject, dictionaries=(replace(one, autoencoder=without),)))
    by_hand = {m.metric: m.value for m in expected.measurements}
    passes = Mock(side_effect=LanguageModel.logits)
    monkeypatch.setattr(LanguageModel, "logits", lambda *given: passes(*given))
    measured = core(subject, group.ablations).measurements
    assert passes.call_count == 2, "a batch of each length, for the metrics of `core`, too"
    assert {m.metric for m in measured if m.of == one.name} > {"l0", "fvu_without_unstable"}
    found = {m.metric: m for m in measured if m.of == one.name}
    for metric in ("fvu", "ce_delta"):
        own, other = (found[f"{metric}_without_{part}"] for part in ("unstable", "matched"))
        assert own.value == pytest.approx(by_hand[metric], rel=1e-5)
        difference = found[f"{metric}_unstable_less_matched"]
        assert difference.value == pytest.approx(own.value - other.value)
        np.testing.assert_allclose(difference.influence, own.influence - other.influence)


def test_untied_encoders_are_compared(subject: Subject) -> None:
    pair = tuple(dictionary(seed, tied=False) for seed in range(2))
    group = stability(replace(subject, dictionaries=pair), null="untrained", floor=0.9)
    expected = "at least 0.9, which 0 % have by chance; pairs below 0.9 are not matched; 29 dead"
    assert expected in group.notes[-1]
    values = {value.metric: value for value in group.values}
    assert values["stability_encoder_cosine"].value == pytest.approx(1.0, abs=0.05)
    alive = [(~np.isnan(group.arrays[f"reappears/{one.name}"])).sum() for one in pair]
    assert values["stability_share"].n == {"latents": round(sum(alive) / 2)}
    assert sum(alive) == 2 * LATENTS - 29
    assert values["stability_share_null"].value == pytest.approx(0.01, abs=0.01)
    assert group.arrays["stability/wide/curve"].shape == (100,)
    assert {type(value.value) for value in group.values} == {float}  # for JSON


def test_the_shuffled_null_is_of_dictionaries_of_shuffled_coordinates(subject: Subject) -> None:
    alike = stability(replace(subject, shuffled=(dictionary(7), dictionary(8))), null="shuffled")
    values = {value.metric: value for value in alike.values}
    # Here they share latents with each seed, as the seeds do; some are dead there.
    assert values["stability_share_0.7_null"].value == pytest.approx(0.4, abs=0.1)
    assert values["stability_share_0.7_null"].n == {"draws": 20}
    others = tuple(replace(one, recipe=one.name) for one in (dictionary(7), dictionary(8)))
    several = tuple(replace(one, recipe=one.name) for one in subject.dictionaries)
    forced = replace(subject, dictionaries=several, shuffled=others)
    assert len(stability(forced, force=True, null="shuffled").values) == len(alike.values)
    with pytest.raises(InputError, match="no dictionary of the recipe was trained on shuffled"):
        stability(subject, null="shuffled")


def test_pairs_without_partners_are_left_out_of_means_over_partners() -> None:
    ones = [dictionary(seed) for seed in range(3)]
    same = csc_array(np.random.default_rng(0).random((20, LATENTS), np.float32))
    latents = {one.name: same for one in ones}
    cosine = np.zeros((3, LATENTS, 3))
    known: Any = SimpleNamespace(
        cosine=cosine, threshold=0.5, partner=np.tile(np.arange(LATENTS)[:, None], (3, 1, 3))
    )

    def correlation() -> Value:
        name = "activation_correlation"
        return _value(name, "wide", _of_partners(ones, known, latents)[name], len(ones), LATENTS)

    none = correlation()
    assert np.isnan(none.value)
    assert none.method == "none: no latent has a partner"
    cosine[0, :, 1] = 1.0
    one = correlation()
    assert one.value == pytest.approx(1.0)
    assert (np.isnan(one.low), one.method) == (True, "none: too few pairs of seeds with partners")


def test_one_seed_leaves_a_note(subject: Subject) -> None:
    alone = stability(replace(subject, dictionaries=subject.dictionaries[:1]))
    assert alone.notes == [
        "stability: one seed only; train more with model.variants {seed: [0, 1, 2, 3, 4]}"
    ]
    one = subject.dictionaries[0]
    two = replace(subject, dictionaries=(replace(subject.dictionaries[1], recipe="narrow"), one))
    remedy = "say --stability.force true"
    alike = "narrow and wide are of one class and shape, but not known to be one recipe"
    assert stability(two).notes == [*alone.notes, f"stability: {alike}; {remedy}"]
    other = replace(one, autoencoder=KSparseAutoencoder(512, 64, k=8), recipe="b")
    unequal = "wide and b differ in latent_dim and k, not in seed alone"
    found = stability(replace(subject, dictionaries=(one, other)))
    assert found.notes[1:] == [f"stability: {unequal}; {remedy}"]
    assert stability(two, force=True).values[0].of == "all dictionaries"


def trained(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Decoder and covariance of a dictionary of data with directions of their own."""
    data = StructuredData(200, 48, Firing(0.03, 0.03), seed=seed)
    x = data.sample(20_000, seed=0).x * torch.linspace(3.0, 0.3, 48)  # anisotropic, all alike
    torch.manual_seed(seed)
    autoencoder = TopKAutoencoder(48, 160, k=6)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=3e-3)
    for step in range(600):
        batch = x[(512 * step) % 19_000 :][:512]
        loss = (autoencoder(batch).reconstruction - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return autoencoder.dictionary.detach().numpy(), np.cov(x.numpy().T)


@pytest.mark.slow
def test_dictionaries_of_unrelated_data_share_no_more_than_by_chance() -> None:
    decoders, covariances = zip(*map(trained, range(4)), strict=True)
    found = latent_stability(decoders, covariance=np.mean(covariances, axis=0))
    share = found.estimates["share_corrected"]
    error = (share.high - share.value) / stdtrit(3, 0.975)
    assert abs(share.value) <= 3 * error
    same = latent_stability([decoders[0], decoders[0][::-1]], covariance=covariances[0])
    assert same.estimates["share_corrected"].value > 0.98
