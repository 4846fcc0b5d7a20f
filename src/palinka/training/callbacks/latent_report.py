"""Latents on disk: a report on each, and their values at every predicted token."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray
from torch import Tensor

from palinka.analyses.findings import Findings
from palinka.analyses.latent_statistics import LatentStatistics, latent_statistics
from palinka.analyses.result import Result, Table
from palinka.analyses.stats.latents import NearestLatents, TopActivations, TopHeap, nearest_latents
from palinka.autoencoders.base import positive_integer
from palinka.autoencoders.files import write_files
from palinka.data import ActivationDataModule, RowContext
from palinka.errors import InputError, track
from palinka.language_models.direct_effect import token_effects
from palinka.training.callbacks.base import EndOfRunCallback, evaluating
from palinka.training.callbacks.tensorboard import write_findings
from palinka.training.module import SparseAutoencoderModule

BATCH_ROWS = 4096
AROUND = 12  # tokens shown before and after the one at which a latent is active


@dataclass(frozen=True)
class LatentReport(Result):
    """Statistics, neighbors, top activations and direct effects of every latent.

    `effects` are the tokens whose logits a latent changes most by the direct path, `(latents, n)`:
    `raised`, `raised_by`, `lowered` and `lowered_by`, about the mean over the vocabulary and
    without unit; empty without a path.
    """

    statistics: LatentStatistics
    near: NearestLatents
    top: TopActivations
    effects: Mapping[str, NDArray[Any]]
    places: Mapping[int, RowContext]  # text around each of the rows in `top`
    decode: Callable[[list[int]], str]

    def scalars(self) -> dict[str, float]:
        """Share of latents that are active anywhere, in per cent."""
        return {"alive": self.statistics.scalars()["alive"]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """One row for each latent in every array; -1 where there is no text."""
        where = {row: (place.document, place.position) for row, place in self.places.items()}
        found = np.array([where.get(row, (-1, -1)) for row in self.top.rows.ravel().tolist()])
        documents, positions = found.T.reshape(2, *self.top.rows.shape)
        return {
            "density": self.statistics.density,
            "activation": self.statistics.activation,
            "nearest": self.near.latents,
            "nearest_cosine": self.near.cosines,
            "top_activation": self.top.values,
            "top_row": self.top.rows,
            "top_document": documents,
            "top_position": positions,
            **self.effects,
        }

    def tables(self) -> dict[str, Table]:
        """One row for each latent, and one for each of its top activations."""
        near, top, text = self.near, self.top, cache(self._text)
        token = cache(lambda token: repr(self.decode([token])))
        latents: Table = {
            "latent": np.arange(len(near.latents)),
            "density": self.statistics.density,
            "activation": self.statistics.activation,
            "nearest": [" ".join(map(str, row)) for row in near.latents.tolist()],
            "nearest_cosine": [" ".join(f"{c:.3f}" for c in row) for row in near.cosines],
        }
        if self.effects:
            for heading, name in (("raises", "raised"), ("lowers", "lowered")):
                latents[heading] = [" ".join(map(token, r)) for r in self.effects[name].tolist()]
        latent, column = np.nonzero(top.rows >= 0)
        rows = top.rows[latent, column].tolist()
        contexts: Table = {
            "latent": latent,
            "rank": column + 1,
            "activation": top.values[latent, column],
            "document": [self.places[row].document for row in rows],
            "position": [self.places[row].position for row in rows],
            "text": [text(row) for row in rows],
        }
        return {"latents": latents, "contexts": contexts}

    def _text(self, row: int) -> str:
        """Text around a row's token, which is between `⟦` and `⟧`."""
        at, tokens = self.places[row].offset, self.places[row].tokens.tolist()
        before, after = tokens[max(0, at - AROUND) : at], tokens[at + 1 : at + 1 + AROUND]
        return f"{self.decode(before)}⟦{self.decode([tokens[at]])}⟧{self.decode(after)}"


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
        """Report on the latents of an unsharded module over the validation rows.

        `watch` is called with every batch of latents, `(rows, latents)`, in order of the rows.
        """
        rows, model = data.validation_rows, data.loaded_language_model
        heap = TopHeap(module.autoencoder.latent_dim, self.contexts)

        def batches() -> Iterator[NDArray[np.float32]]:
            for latents in encoded_rows(data, module):
                heap.add(latents)
                watch(latents)
                yield latents

        with evaluating(module):
            statistics = latent_statistics(batches())
        top = heap.result()
        # In raw units: what one unit of a latent adds to the site.
        directions = (module.autoencoder.dictionary / module.output_scaling.scale).detach()
        effects: dict[str, NDArray[Any]] = {}
        notes: tuple[str, ...] = ()
        try:
            site = data.validation_spec.resolved_sites[-1]
            found = token_effects(model, site, directions, self.tokens)
            effects = {name: effect.numpy() for name, effect in found._asdict().items()}
        except InputError as error:
            notes = (str(error),)
        return LatentReport(
            statistics,
            nearest_latents(directions.float().cpu().numpy(), self.nearest),
            top,
            effects,
            {row: rows.context(row) for row in np.unique(top.rows[top.rows >= 0]).tolist()},
            lambda ids: str(model.tokenizer.decode(ids)),
            notes=notes,
        )


def encoded_rows(
    data: ActivationDataModule, module: SparseAutoencoderModule
) -> Iterator[NDArray[np.float32]]:
    """Latents of the validation rows in batches, `(rows, latents)`."""
    rows = data.validation_rows
    starts = range(0, rows.rows, BATCH_ROWS)
    for start in track(starts, "encoding latents", len(starts)):
        batch = rows.read_rows(start, min(start + BATCH_ROWS, rows.rows))
        with torch.no_grad():
            encoded = module.encode(batch[:, : data.width].to(module.device))
        yield encoded.float().cpu().numpy()


class LatentWriter(Callback):
    """Write the non-zero latents of every predicted batch to a safetensors file.

    The files are `<log_dir>/latents/rank0-batch000000.safetensors` and so on. Each holds, for
    the `n` non-zero latents of the batch, `token` and `latent` (int32, `(n,)`: the row in the
    batch, the index of the latent) and `value` (float32, `(n,)`), and in `shape` the tokens
    and latents of the batch.
    """

    def on_predict_start(self, trainer: Trainer, *_: Any) -> None:
        """Make the folder; raise early without a logger."""
        if trainer.log_dir is None:
            raise InputError("predict writes latents to the log folder: leave trainer.logger out")
        self._folder = Path(trainer.log_dir) / "latents"
        self._folder.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self, trainer: Trainer, module: Any, outputs: Tensor, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Write one batch."""
        token, latent = outputs.nonzero(as_tuple=True)
        tensors = {
            "token": token.int(),
            "latent": latent.int(),
            "value": outputs[token, latent].float(),
            "shape": torch.tensor(outputs.shape),
        }
        name = f"rank{trainer.global_rank}-batch{batch_idx:06d}.safetensors"
        write_files(self._folder, {name: tensors})
