"""A training step as the other libraries take it: untied, biased, unit norm, AuxK at work.

python benchmarks/sparse_step_auxk.py
"""

import torch

from harness import Case, report
from palinka.autoencoders import TopKAutoencoder
from peers import Setting, rivals
from training_step import PalinkaStep

ROWS, WIDTH, LATENTS, K, DEAD = 1024, 768, 16384, 32, 2048
PROMISES = {
    "SAELens": 2.5,
    "SAELens, given fused Adam": None,
    "dictionary_learning": 2.5,
    "sparsify": 1.5,
}


def untied_step(setting: Setting) -> PalinkaStep:
    """Our step of a TopK autoencoder with a setting's weights, AuxK on where latents are dead."""
    autoencoder = TopKAutoencoder(setting.width, setting.latents, setting.k)
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(setting.dictionary)
        autoencoder.decoder_weight.copy_(setting.dictionary)
    return PalinkaStep(autoencoder, setting.batch, dead=setting.dead)


def main() -> None:
    """Measure and report."""
    setting = Setting.drawn(ROWS, WIDTH, LATENTS, K, DEAD)
    ours = untied_step(setting)
    others, missing = rivals(setting, ours.reconstruction(), PROMISES)
    report(
        "sparse_step_auxk",
        "A sparse training step with AuxK",
        [
            Case(
                f"{ROWS:,} rows of {WIDTH}, {LATENTS:,} latents, k = {K}, {DEAD:,} of them dead",
                ours=ours,
                rivals=others,
                missing=missing,
                rounds=5,
            )
        ],
        remarks=(
            "Ours: `TopKAutoencoder`, its own encoder and decoder with biases, rows of norm 1 by "
            "projection and renormalization, normalized error, counters and AuxK with half the "
            "width of dead latents per row, on each side. The same latents are made to count as "
            "dead before every step of every side. The other libraries' AuxK lets negative "
            "values through, where the paper's code and ours apply the ReLU first, "
            "except dictionary_learning's; SAELens scales latents by norms instead of keeping "
            "them at 1. overcomplete has no such loss."
        ),
    )


if __name__ == "__main__":
    main()
