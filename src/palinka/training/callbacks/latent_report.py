"""Report on every latent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from palinka.analyses.findings import Findings
from palinka.analyses.latent_statistics import latent_statistics
from palinka.analyses.result import Result, Table
from palinka.analyses.stats.latents import TopHeap, nearest_latents
from palinka.autoencoders.base import positive_integer
from palinka.data import ActivationDataModule, RowContext
from palinka.errors import InputError, track
from palinka.language_models.direct_effect import token_effects
from palinka.training.callbacks.tensorboard import write_findings
from palinka.training.callbacks.variants import EndOfRunCallback, evaluating
from palinka.training.module import SparseAutoencoderModule

BATCH_ROWS = 4096
# Tokens shown before and after the one at which a latent is active.
AROUND = 12


@dataclass(frozen=True)
class LatentReport(Result):
    """One row for each latent in every array.

    Attributes:
        density: Share of tokens at which it is active, in per cent.
        activation: Mean magnitude over those tokens.
        nearest: Latents with the nearest directions, `(latents, n)`.
        nearest_cosine: Their cosines.
        top_activation: Largest activations, `(latents, n)`, padded with 0.
        top_row: Their validation rows, padded with -1.
        top_document: Documents of those rows.
        top_position: Positions of the tokens in their documents.
        raised, lowered: Tokens whose logits it raises and lowers most by the direct path,
            `(latents, n)`; None without such a path.
        raised_by, lowered_by: Size of these effects, in arbitrary units.
        token_text: Decoded tokens, by id.
        row_text: Text around a row's token, which is between `⟦` and `⟧`, by row.
    """

    density: NDArray[np.float64]
    activation: NDArray[np.float64]
    nearest: NDArray[np.int64]
    nearest_cosine: NDArray[np.float32]
    top_activation: NDArray[np.float32]
    top_row: NDArray[np.int64]
    top_document: NDArray[np.int64]
    top_position: NDArray[np.int64]
    raised: NDArray[np.int64] | None
    raised_by: NDArray[np.float32] | None
    lowered: NDArray[np.int64] | None
    lowered_by: NDArray[np.float32] | None
    token_text: dict[int, str]
    row_text: dict[int, str]

    headline: ClassVar[tuple[str, ...]] = ("alive",)

    @property
    def alive(self) -> float:
        """Share of latents that are active anywhere, in per cent."""
        return 100.0 * float((self.density > 0).mean())

    def tables(self) -> dict[str, Table]:
        """One row for each latent, and one for each of its top activations."""
        latents: Table = {
            "latent": np.arange(len(self.density)),
            "density": self.density,
            "activation": self.activation,
            "nearest": [" ".join(map(str, row)) for row in self.nearest.tolist()],
            "nearest_cosine": [" ".join(f"{c:.3f}" for c in row) for row in self.nearest_cosine],
        }
        for name, ids in (("raises", self.raised), ("lowers", self.lowered)):
            if ids is not None:
                rows = ids.tolist()
                latents[name] = [" ".join(repr(self.token_text[t]) for t in row) for row in rows]
        there = self.top_row >= 0
        latent, rank = np.nonzero(there)
        contexts: Table = {
            "latent": latent,
            "rank": rank + 1,
            "activation": self.top_activation[there],
            "document": self.top_document[there],
            "position": self.top_position[there],
            "text": [self.row_text[row] for row in self.top_row[there].tolist()],
        }
        return {"latents": latents, "contexts": contexts}


class ReportLatents(EndOfRunCallback):
    """Report on every latent, in `<log_dir>/analyses/latents/`.

    One pass over the validation rows, on the process that logs, at the end of `validate`,
    `test` and `fit`. `latents.csv` has a row for each latent: how often it is active and how
    strongly, the latents with the nearest directions, and the tokens whose logits it raises and
    lowers most by the direct path through the unembedding, where there is one from the site.
    `contexts.csv` has the texts in which it is most active; `arrays.npz` has all numbers.

    Args:
        contexts: Number of texts for each latent.
        tokens: Number of tokens that it raises, and that it lowers.
        nearest: Number of latents with near directions.

    Raises:
        InputError: If a number is below 1.
    """

    def __init__(self, contexts: int = 10, tokens: int = 10, nearest: int = 5) -> None:
        self.contexts = positive_integer("contexts", contexts)
        self.tokens = positive_integer("tokens", tokens)
        self.nearest = positive_integer("nearest", nearest)

    on_test_end = EndOfRunCallback.on_fit_end

    def write(
        self, trainer: Trainer, module: SparseAutoencoderModule, data: ActivationDataModule
    ) -> None:
        """Write the report to the disk and to the logger."""
        settings = {**data.source, "rows": data.validation_rows.rows}
        result = self.report(data, module)
        write_findings(Findings("latents", {"": result}, settings=settings), trainer)

    def report(
        self,
        data: ActivationDataModule,
        module: SparseAutoencoderModule,
        watch: Callable[[NDArray[np.float32]], None] = lambda latents: None,
    ) -> LatentReport:
        """Report on the latents of a module over the validation rows.

        Args:
            data: Data module with the rows, their texts and the language model.
            module: The module; not sharded.
            watch: Called with every batch of latents, `(rows, latents)`, in order of the rows.
        """
        rows, model = data.validation_rows, data.loaded_language_model
        heap = TopHeap(module.autoencoder.latent_dim, self.contexts)

        def batches() -> Iterator[Tensor]:
            starts = range(0, rows.rows, BATCH_ROWS)
            for start in track(starts, "encoding latents", len(starts)):
                batch = rows.read_rows(start, min(start + BATCH_ROWS, rows.rows))
                with torch.no_grad():
                    latents = module.encode(batch[:, : data.width].to(module.device)).float().cpu()
                heap.add(latents.numpy())
                watch(latents.numpy())
                yield latents

        with evaluating(module):
            statistics = latent_statistics(batches())
        top = heap.result()
        places = {int(row): rows.context(int(row)) for row in np.unique(top.rows) if row >= 0}
        none = RowContext(np.zeros(0, np.int32), 0, -1, -1)
        found = [places.get(int(row), none) for row in top.rows.flat]
        # In raw units: what one unit of a latent adds to the site.
        directions = (module.autoencoder.dictionary / module.output_scaling.scale).detach()
        near = nearest_latents(directions.float().cpu().numpy(), self.nearest)
        raised = raised_by = lowered = lowered_by = None
        notes: tuple[str, ...] = ()
        try:
            site = data.validation_spec.resolved_sites[-1]
            effects = token_effects(model, site, directions, self.tokens)
            raised, raised_by, lowered, lowered_by = (effect.numpy() for effect in effects)
        except InputError as error:
            notes = (str(error),)
        ids = {int(i) for array in (raised, lowered) if array is not None for i in array.flat}

        def decode(ids: list[int]) -> str:
            return str(model.tokenizer.decode(ids))

        def around(place: RowContext) -> str:
            at, tokens = place.offset, place.tokens.tolist()
            before, after = tokens[max(0, at - AROUND) : at], tokens[at + 1 : at + 1 + AROUND]
            return f"{decode(before)}⟦{decode(tokens[at : at + 1])}⟧{decode(after)}"

        return LatentReport(
            density=statistics.density,
            activation=statistics.activation,
            nearest=near.latents,
            nearest_cosine=near.cosines,
            top_activation=top.values,
            top_row=top.rows,
            top_document=np.array([c.document for c in found]).reshape(top.rows.shape),
            top_position=np.array([c.position for c in found]).reshape(top.rows.shape),
            raised=raised,
            raised_by=raised_by,
            lowered=lowered,
            lowered_by=lowered_by,
            token_text={token: decode([token]) for token in ids},
            row_text={row: around(place) for row, place in places.items()},
            notes=notes,
        )
