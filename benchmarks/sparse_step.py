"""A training step of a sparse, tied autoencoder without penalties, and its bound.

python benchmarks/sparse_step.py
"""

import torch

from harness import Case, Rival, report
from palinka.autoencoders import KSparseAutoencoder
from peers import PEERS, Setting, rivals
from process import product
from training_step import PalinkaStep

ROWS, WIDTH, LATENTS, K = 1024, 768, 16384, 32
PROMISES = {
    "SAELens": 4.0,
    "SAELens, given fused Adam": None,
    "dictionary_learning": 4.0,
    "overcomplete": 3.5,
    "sparsify": 2.0,
}


def tied_step(setting: Setting) -> PalinkaStep:
    """Our step of a tied autoencoder with a setting's weights."""
    autoencoder = KSparseAutoencoder(setting.width, setting.latents, setting.k)
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(setting.dictionary)
    return PalinkaStep(autoencoder, setting.batch)


def main() -> None:
    """Measure and report."""
    setting = Setting.drawn(ROWS, WIDTH, LATENTS, K)
    ours = tied_step(setting)
    others, missing = rivals(setting, ours.reconstruction(), PROMISES)
    encode = product(setting.batch, setting.dictionary)
    others += [
        Rival("bound: the encoder's product alone", ours.settings.given_to(encode), at_most=2.0),
        Rival("the same product as torch has it", encode),
    ]
    if "SAELens" not in missing:
        others.append(
            Rival(
                "SAELens, given fused Adam and our fit's process settings",
                ours.settings.given_to(PEERS["SAELens, given fused Adam"](setting)),
            )
        )
    report(
        "sparse_step",
        "A sparse training step",
        [
            Case(
                f"{ROWS:,} rows of {WIDTH}, {LATENTS:,} latents, k = {K}, float32",
                ours=ours,
                rivals=others,
                missing=missing,
                rounds=7,
            )
        ],
        remarks=(
            "Ours: `KSparseAutoencoder`, tied, without biases, penalties or AuxK, with fused Adam "
            "as in the configurations, and with what a fit sets for its process: the faster of "
            "two float32 products where it is as exact, and freed memory kept. The others have an "
            "encoder and a decoder of their own, with biases, which they cannot do without, "
            "PyTorch's and glibc's own settings, and the optimizer that their users get: "
            "Adam as PyTorch has it by default, sparsify its sign descent. What each computes "
            "beyond ours is written in `benchmarks/peers`. All begin with the same weights and "
            "see the same batch."
        ),
    )


if __name__ == "__main__":
    main()
