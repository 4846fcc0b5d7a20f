"""Two dictionaries of the same input, matched by decoder cosines."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.analyses.stats.dictionaries import latent_stability
from palinka.atlas.text import TokenActivations, TokenCounter
from palinka.autoencoders.formats import load
from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks.base import evaluating
from palinka.training.callbacks.latent_report import encoded_rows

DRAWS, DRAWS_OF_MANY = 20, 3  # of the null; of many latents each takes as long as the matching
MANY = 8192
COVARIANCE_ROWS = 16_384


class Other(NamedTuple):
    """Another dictionary, and the name of its file or folder."""

    name: str
    module: SparseAutoencoderModule


def read_dictionary(
    path: Path, module: SparseAutoencoderModule, data: ActivationDataModule
) -> Other:
    """Read a checkpoint or an exported dictionary of the same model, site and widths."""
    if path.is_dir():
        autoencoder, provenance = load(path)
        other, source = SparseAutoencoderModule(autoencoder), provenance.to_dict()
    else:
        source = checkpoint.read(path).get("source", {})
        other = SparseAutoencoderModule.load_from_checkpoint(path, map_location="cpu")
    widths = ("input_dim", "output_dim")
    mine = {**data.source, **{name: getattr(module.autoencoder, name) for name in widths}}
    source = {**mine, **source, **{name: getattr(other.autoencoder, name) for name in widths}}
    for name, expected in mine.items():
        if name != "bos" and source[name] != expected:
            fault = f"{path} has {name} {source[name]}, this dictionary {expected}"
            raise InputError(f"{fault}; give another one of the same model and site")
    return Other(path.name if path.is_dir() else "/".join(path.parts[-3:]), other)


class Matches(NamedTuple):
    """Latents of two dictionaries matched one-to-one."""

    pairs: NDArray[np.int64]  # latent of the first and of the second, most similar first
    cosines: NDArray[np.float32]  # of the pairs
    best: tuple[NDArray[np.float64], ...]  # largest cosine of each with any of the others, of both
    floor: float  # least cosine of a pair
    threshold: float  # cosine that the pairs of 1 % of latents have by chance
    share: float  # of latents with a pair of at least that cosine


def match(
    a: NDArray[np.float32], b: NDArray[np.float32], covariance: NDArray[np.float64]
) -> Matches:
    """Match the rows of two dictionaries by cosine, beside a null of flipped signs.

    `covariance` is that of the activations that they are directions of.
    """
    draws = DRAWS if max(len(a), len(b)) <= MANY else DRAWS_OF_MANY
    found = latent_stability([a, b], covariance=covariance, draws=draws)
    partner, cosine = found.partner[0][:, 1], found.cosine[0][:, 1]
    left = np.flatnonzero(partner >= 0)
    left = left[np.argsort(-cosine[left], kind="stable")]
    pairs = np.stack([left, partner[left]], axis=1)
    share = found.estimates["share"].value
    best = tuple(found.best_cosine)
    return Matches(pairs, cosine[left], best, found.floor, found.threshold, share)


class Against(NamedTuple):
    """A comparison with another dictionary."""

    name: str  # its file or folder
    matches: Matches
    tokens: TokenActivations  # of the other dictionary
    density: NDArray[np.float64]  # of its latents, in per cent of tokens


def compare(data: ActivationDataModule, module: SparseAutoencoderModule, against: Other) -> Against:
    """Match a dictionary with another, and measure that one on the rows."""
    other = against.module.to(module.device)
    rows, latents = data.validation_rows, other.autoencoder.latent_dim
    counter, active = TokenCounter(rows.tokens(), latents), np.zeros(latents)
    with evaluating(other):
        for batch in encoded_rows(data, other):
            counter.add(batch)
            active += (batch > 0).sum(axis=0)
    ours, theirs = (
        one.autoencoder.dictionary.detach().float().cpu().numpy() for one in (module, other)
    )
    some = rows.read_rows(0, min(rows.rows, COVARIANCE_ROWS))[:, -ours.shape[1] :]
    matches = match(ours, theirs, torch.cov(some.double().T).numpy())
    return Against(against.name, matches, counter.result(), 100.0 * active / rows.rows)
