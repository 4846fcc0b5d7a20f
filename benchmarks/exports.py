"""Exports of latents with their texts.

python benchmarks/exports.py
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from harness import Row, duration, medians, publish, table, timed
from palinka.atlas import exports
from palinka.atlas.exports import write_delphi
from palinka.atlas.facts import gather
from palinka.autoencoders import KSparseAutoencoder
from palinka.data import ActivationDataModule
from palinka.training import SparseAutoencoderModule

LATENTS, TOKENS, ROUNDS, PROMISED = 2048, 20_480, 3, 1000


def row(name: str, latents: int, write: Callable[[], object]) -> Row:
    """CPU time of a call, and latents per second of it."""
    spent = medians([timed(write)[0] for _ in range(ROUNDS)])
    rate = latents / spent.cpu
    kept = "met" if rate >= PROMISED else "**missed**"
    promised = f"at least {PROMISED:,}: {kept}"
    return Row(name, "palinka", duration(spent.wall), duration(spent.cpu), f"{rate:,.0f}", promised)


def main() -> None:
    """Measure and publish."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = ActivationDataModule(in_memory=True, validation_tokens=TOKENS, train_tokens=TOKENS)
    data.setup("validate")
    module = SparseAutoencoderModule(KSparseAutoencoder(data.width, LATENTS, k=32))
    facts = gather(data, module, exports.OPTIONS)
    directions = module.autoencoder.dictionary.detach().numpy()
    active, width = len(exports.active(facts)), data.width
    hook, contexts = "blocks.3.hook_mlp_out", TOKENS // 128
    source = exports.Source("mini", 6, 3, "palinka", None, hook, "BundledSample", contexts, 128)
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / str(n) for n in range(99))
        rows = [
            row(
                "saedashboard",
                active,
                lambda: exports.write_saedashboard(next(folders), facts, directions, source),
            ),
            row(
                "neuronpedia",
                active,
                lambda: exports.write_neuronpedia(next(folders), facts, directions, source, {}),
            ),
            row(
                "delphi, with encoding",
                active,
                lambda: write_delphi(next(folders), data, module, source, "h", {}),
            ),
        ]
    remarks = (
        f"{active:,} active latents of {LATENTS:,} (k = 32) of width {width} at a site with "
        f"vectors, {TOKENS:,} tokens of the bundled text; the ratio is latents per second of CPU "
        "time. SAEDashboard's and Neuronpedia's files are written from facts that are gathered "
        "before, as for an atlas; delphi's cache is encoded, too. Medians of three calls."
    )
    publish("exports", "Exports of latents with texts", table(rows), remarks)


if __name__ == "__main__":
    main()
