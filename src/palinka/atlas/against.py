"""Two dictionaries of the same input, matched by decoder cosines."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from palinka.analyses.stats.latents import CHUNK_ELEMENTS
from palinka.analyses.stats.permutation import chunks
from palinka.atlas.tokens import TokenActivations, TokenCounter
from palinka.autoencoders.formats import load
from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks.base import evaluating
from palinka.training.callbacks.latent_report import encoded_rows

MAX_ASSIGNED = 8192  # latents; the time of the assignment grows with their third power


class Other(NamedTuple):
    """Another dictionary, and the name of its file or folder."""

    name: str
    module: SparseAutoencoderModule


def read_dictionary(
    path: Path, module: SparseAutoencoderModule, data: ActivationDataModule
) -> Other:
    """Read a checkpoint or an exported dictionary of the same model, site and widths.

    Raises:
        InputError: If it reads or writes other activations than `module`.
    """
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
    best: tuple[NDArray[np.float32], ...]  # largest cosine of each with any of the others, of both
    assigned: bool  # by linear assignment; otherwise mutual nearest neighbors


def match(a: NDArray[np.float32], b: NDArray[np.float32], most: int = MAX_ASSIGNED) -> Matches:
    """Match the rows of two dictionaries by cosine.

    With at most `most` rows in each, the sum of the cosines of the pairs is the largest possible;
    otherwise rows are matched that are each other's nearest.
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    (nearest, best), (nearest_back, best_back) = _nearest(a, b), _nearest(b, a)
    assigned = max(len(a), len(b)) <= most
    if assigned:
        left, right = linear_sum_assignment(a @ b.T, maximize=True)
    else:
        left = np.flatnonzero(nearest_back[nearest] == np.arange(len(a)))
        right = nearest[left]
    cosines = np.sum(a[left] * b[right], axis=1)
    order = np.argsort(-cosines, kind="stable")
    pairs = np.stack([left, right], axis=1)[order]
    return Matches(pairs, cosines[order], (best, best_back), assigned)


def _nearest(
    a: NDArray[np.float32], b: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Row of `b` with the largest cosine to each row of `a`, and the cosine."""
    blocks = (a[rows] @ b.T for rows in chunks(len(a), CHUNK_ELEMENTS // len(b)))
    found = [(block.argmax(axis=1), block.max(axis=1)) for block in blocks]
    rows, cosines = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(cosines)


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
    return Against(against.name, match(ours, theirs), counter.result(), 100.0 * active / rows.rows)
