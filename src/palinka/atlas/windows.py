"""Short pieces of text with the activation of one latent at each of their tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations import ActivationDataModule
from palinka.analyses.blocks import blocks
from palinka.atlas.text import Text
from palinka.progress import track
from palinka.training import SparseAutoencoderModule

BEFORE = 15
AFTER = 9
# Tokens that go through the language model and the autoencoder at a time.
GROUP_TOKENS = 4096
# So many windows are looked up at once.
PIECE = 1 << 16


@dataclass(frozen=True)
class Windows:
    """Pieces of text around the places of some rows, `n` for each latent.

    Attributes:
        places: Where in the text each row's token stands, `(latents, n)`; -1 for none.
        tokens: Token ids, `(latents, n, BEFORE + 1 + AFTER)`, the row's own at `BEFORE`; -1
            beyond the context.
        activations: The latent's activation at each of them, in the same shape.
        documents: Number of the document, `(latents, n)`.
        positions: Place of the row's token in it, `(latents, n)`.
    """

    places: NDArray[np.int64]
    tokens: NDArray[np.int32]
    activations: NDArray[np.float32]
    documents: NDArray[np.int64]
    positions: NDArray[np.int64]

    @property
    def peak(self) -> NDArray[np.float32]:
        """The activation at the row's own token, `(latents, n)`."""
        return self.activations[:, :, BEFORE]

    def chosen(self, columns: NDArray[np.int64]) -> "Windows":
        """Some of each latent's windows; `columns` is `(latents, m)`, -1 for none."""
        latent = np.arange(len(columns))[:, None]
        none = columns < 0
        places = np.where(none, -1, self.places[latent, columns])
        return Windows(
            places,
            self.tokens[latent, columns],
            self.activations[latent, columns],
            self.documents[latent, columns],
            self.positions[latent, columns],
        )


def read_windows(
    data: ActivationDataModule,
    module: SparseAutoencoderModule,
    text: Text,
    rows: NDArray[np.int64],
) -> Windows:
    """Read the text around rows once more, with the activations of their latents.

    Args:
        data: Where the rows and the language model come from.
        module: Whose latents; on one device.
        text: The text of the rows.
        rows: Numbers of validation rows, `(latents, n)`; -1 for none.
    """
    places, documents, positions = _places(data, text, rows)
    latent, column = np.nonzero(places >= 0)
    order = np.argsort(places[latent, column], kind="stable")
    latent, column = latent[order], column[order]
    wanted = places[latent, column]
    size = BEFORE + 1 + AFTER
    tokens = np.full((*rows.shape, size), -1, dtype=np.int32)
    activations = np.zeros((*rows.shape, size), dtype=np.float32)
    groups = list(text.groups(GROUP_TOKENS))
    for start, stop, length in track(groups, "reading contexts", len(groups)):
        own = slice(*np.searchsorted(wanted, [start, stop]))
        if own.start == own.stop:
            continue
        latents = _latents(data, module, text.tokens[start:stop].reshape(-1, length))
        for piece in blocks(own.stop - own.start, PIECE):
            some = slice(own.start + piece.start, own.start + piece.stop)
            window, inside = text.around(wanted[some], BEFORE, AFTER)
            values = latents[np.where(inside, window - start, 0), latent[some, None]]
            activations[latent[some], column[some]] = np.where(inside, values, 0.0)
            tokens[latent[some], column[some]] = np.where(inside, text.tokens[window], -1)
    return Windows(places, tokens, activations, documents, positions)


def _places(
    data: ActivationDataModule, text: Text, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where rows stand in the text: place, document and position, each in their shape."""
    stored = data.validation_rows
    known, inverse = np.unique(rows, return_inverse=True)
    found = np.full((len(known), 3), -1, dtype=np.int64)
    for index, row in enumerate(known.tolist()):
        if row >= 0:
            context = stored.context(row)
            found[index, 1:] = context.document, context.position
    there = known >= 0
    found[there, 0] = text.locate(found[there, 1], found[there, 2])
    place, document, position = found[inverse.reshape(rows.shape)].transpose(2, 0, 1)
    return place, document, position


@torch.no_grad()
def _latents(
    data: ActivationDataModule, module: SparseAutoencoderModule, blocks: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The latents of every token of some contexts, `(tokens, latents)`."""
    spec = data.validation_spec
    site = spec.resolved_sites[0]
    ids = torch.from_numpy(np.ascontiguousarray(blocks))
    read = data.loaded_language_model.read_blocks(ids, [site])[site]
    # As the rows are stored, so that the same latents are active.
    stored = read.to(data.validation_rows.dtype).float().to(module.device)
    latents = module.encode(stored).float()
    latents[:, : spec.layout.skip] = 0.0  # left out of the rows
    return latents.flatten(0, 1).cpu().numpy()
