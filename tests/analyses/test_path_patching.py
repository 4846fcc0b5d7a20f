import numpy as np

from palinka.analyses import activation_patching, path_patching


def test_effects_are_those_of_patches_with_senders_and_receivers_as_axes():
    random = np.random.default_rng(0)
    patched, corrupted = random.normal(size=(3, 2, 12)), -1.0 - random.random(12)
    clean, clusters = 2.0 + random.random(12), np.repeat(np.arange(6), 2)
    for direction in ("denoise", "noise"):
        given, options = (patched, clean, corrupted), {"clusters": clusters, "direction": direction}
        found, expected = path_patching(*given, **options), activation_patching(*given, **options)
        for name in ("effects", "effect_low", "recovery", "p", "p_corrected"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.cells()[3] == {"component": "", "sender": 1, "receiver": 1}
        assert found.direction == direction
        strongest = np.abs(found.effect).argmax()
        ends = f"sender {strongest // 2} → receiver {strongest % 2}"
        assert f"strongest: {ends} {found.effect[strongest]:+.3g}, rec" in found.headline("", ())
        senders = np.abs(found.effect.reshape(3, 2)).argmax(axis=0)
        assert [found.scalars()[f"{i}/strongest_sender"] for i in range(2)] == senders.tolist()


def test_the_headline_names_sender_and_receiver():
    axes = {
        "heads": {"receiver": ["logits"], "layer": [3, 4], "head": [0, 1]},
        "mlp.out": {"layer": [0, 1], "receiver": ["logits"]},
    }
    patched = {"heads": np.zeros((1, 2, 2, 6)), "mlp.out": np.zeros((2, 1, 6))}
    patched["heads"][0, 1, 1] += 1.0
    patched["mlp.out"][0] += 2.0
    found = path_patching(patched, np.ones(6), -np.ones(6), axes=axes)
    mlps, heads = found.headline("", ()).split("strongest: ")[1].split("; ")
    assert heads.startswith("heads layer 4 head 1 → logits +2, recovery 1.00, p ")
    assert mlps.startswith("mlp.out layer 0 → logits +3, recovery 1.50, p ")
