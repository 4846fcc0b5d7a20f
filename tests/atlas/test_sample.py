import numpy as np

from palinka.atlas.facts import ActiveSample


def test_only_active_rows_are_drawn_and_each_once() -> None:
    random = np.random.default_rng(0)
    batches = [(random.random((50, 4)) < 0.3).astype(np.float32) for _ in range(4)]
    batches[1][:, 3] = -1.0  # below zero is not active
    for batch in batches:
        batch[:, 2] = 0.0
    batches[2][5, 2] = 0.5
    sample = ActiveSample(4, 8)
    for batch in batches:
        sample.add(batch)
    rows = sample.rows()
    whole = np.concatenate(batches)
    for latent in (0, 1, 3):
        assert len(set(rows[latent])) == 8
        assert (whole[rows[latent], latent] > 0).all()
    assert rows[2].tolist() == [105, *[-1] * 7]


def test_every_active_row_is_as_probable_as_the_others() -> None:
    # The strength must not matter, nor the batch: 2,000 latents draw 5 of 20 rows each.
    strength = np.linspace(0.01, 100.0, 20, dtype=np.float32)
    sample = ActiveSample(2000, 5, seed=3)
    for part in np.array_split(np.repeat(strength[:, None], 2000, axis=1), 3):
        sample.add(part)
    drawn = np.bincount(sample.rows().ravel(), minlength=20)
    # 500 expected of each, with a standard deviation of 19.
    assert drawn.sum() == 10_000
    assert (abs(drawn - 500) < 80).all()
