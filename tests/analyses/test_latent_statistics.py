import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palinka.analyses.latent_statistics import latent_statistics
from palinka.errors import InputError

values = st.one_of(st.just(0.0), st.floats(-100, 100, width=32))
matrices = arrays(
    np.float32, st.tuples(st.integers(1, 20), st.integers(1, 6)), elements=values, fill=st.just(0.0)
)


def plain(latents):
    """The specification, latent by latent."""
    density, activation, mass = [], [], []
    for column in latents.T.astype(np.float64):
        active = [abs(value) for value in column if value != 0]
        density.append(100 * len(active) / len(column))
        activation.append(sum(active) / len(active) if active else 0.0)
        mass.append(density[-1] * activation[-1])
    return np.array(density), np.array(activation), np.array(mass)


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_equals_the_plain_transcription(latents):
    result = latent_statistics(latents)
    density, activation, mass = plain(latents)
    assert (result.density == density).all()
    np.testing.assert_allclose(result.activation, activation, rtol=1e-12)
    np.testing.assert_allclose(result.mass, mass, rtol=1e-12)
    assert (result.dead == (density == 0)).all()
    assert result.density.dtype == result.activation.dtype == result.mass.dtype == np.float64


@given(matrices, st.lists(st.integers(0, 20), max_size=5))
@settings(max_examples=60, deadline=None)
def test_does_not_depend_on_the_split_into_batches(latents, cuts):
    whole = latent_statistics(latents)
    batches = np.split(latents, sorted(min(cut, len(latents)) for cut in cuts))
    split = latent_statistics(iter(batches))
    assert (split.density == whole.density).all()
    assert (split.dead == whole.dead).all()
    np.testing.assert_allclose(split.activation, whole.activation, rtol=1e-12)
    np.testing.assert_allclose(split.mass, whole.mass, rtol=1e-12)


def test_sums_do_not_lose_small_activations_among_many_tokens():
    latents = np.full((300_000, 1), 0.1, dtype=np.float32)
    assert latent_statistics(latents).activation == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_takes_torch_tensors_of_half_precision():
    latents = torch.tensor([[0.0, 1.5], [0.0, -0.5]], dtype=torch.bfloat16, requires_grad=True)
    expected = {"density": [0, 100], "activation": [0, 1], "mass": [0, 100], "dead": [True, False]}
    for given_as in (latents, [latents[:1], latents[1:]]):
        found = latent_statistics(given_as).arrays()
        assert {name: values.tolist() for name, values in found.items()} == expected


def test_scalars_summarize_and_tables_list():
    result = latent_statistics(np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 4.0]]))
    alive = pytest.approx(200 / 3)
    assert result.scalars() == {
        "alive": alive, "l0": 1.5, "mean_density": 75.0, "mean_activation": 2.0,
    }  # fmt: skip
    table = result.tables()["latents"]
    assert list(table["latent"]) == [0, 1, 2]
    assert list(table["density"]) == [0.0, 50.0, 100.0]
    assert result.notes == ("1 of 3 are silent on these 2 tokens",)
    silent = latent_statistics(np.zeros((4, 3)))
    assert silent.dead.all()
    assert set(silent.scalars().values()) == {0.0}
    dense = latent_statistics(np.ones((4, 3)))
    assert dense.notes == ()
    assert dense.scalars() == {"mean_activation": 1.0}


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ([], "no latents"),
        (iter([np.zeros((0, 3))]), "no latents"),
        (np.zeros(3), r"latents has the shape \(3,\)"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "batch 1 of latents is 4 wide.* is 3"),
        ([np.zeros((2, 3)), np.full((2, 3), np.nan)], "batch 1 of latents holds NaN"),
    ],
)
def test_bad_input(latents, message):
    with pytest.raises(InputError, match=message):
        latent_statistics(latents)
