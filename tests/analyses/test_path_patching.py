import numpy as np

from palinka.analyses import activation_patching, path_patching


def test_effects_are_those_of_patches_with_senders_and_receivers_as_axes():
    random = np.random.default_rng(0)
    patched, corrupted = random.normal(size=(3, 2, 12)), -1.0 - random.random(12)
    clean, clusters = 2.0 + random.random(12), np.repeat(np.arange(6), 2)
    for direction in ("denoise", "noise"):
        given = patched, clean, corrupted, clusters
        found = path_patching(*given, direction=direction)
        expected = activation_patching(*given, direction=direction)
        for name in ("effects", "effect_low", "recovery", "p", "p_corrected"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.cells()[3] == {"component": "", "sender": 1, "receiver": 1}
        assert found.direction == direction
