from types import ModuleType

import numpy as np
import pytest
import torch


def test_the_figure_is_that_of_a_direct_reconstruction(script: ModuleType) -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(12, 12))
    training = generator.normal(size=(400, 12)) @ mixing + 30.0
    validation = generator.normal(size=(150, 12)) @ mixing + 30.5
    moments = [
        script.centered_moments(iter(torch.from_numpy(rows).split(64)), 12)
        for rows in (training, validation)
    ]
    basis = np.linalg.svd(training - training.mean(0), full_matrices=False)[2][:5]
    error = validation - training.mean(0)
    error = error - error @ basis.T @ basis
    expected = (error**2).sum() / ((validation - validation.mean(0)) ** 2).sum()
    assert script.pca_fvu(*moments, components=5) == pytest.approx(expected, rel=1e-9)
