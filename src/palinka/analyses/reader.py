"""Activations and latents of stimuli."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.analyses.stimuli import Prepared
from palinka.autoencoders import formats
from palinka.errors import InputError
from palinka.language_models import LanguageModel, LanguageModelSpec, Tokens
from palinka.language_models.edits import EncodesAndDecodes
from palinka.language_models.token_text import bos_id

BATCH_TEXTS = 16


@dataclass(frozen=True)
class Encoder:
    """An autoencoder, and where it was trained, as far as that is known."""

    encode: Callable[[Tensor], Tensor]  # raw activations (…, width) to latents (…, latents)
    width: int
    site: str | None = None  # its full name
    language_model: str | None = None  # the identity of the model
    bos: bool = False  # the contexts began with a BOS token
    described: str = "autoencoder"  # the class, for the record
    dictionary: EncodesAndDecodes | None = None  # encodes and decodes, for interventions

    @classmethod
    def from_folder(cls, folder: str | PathLike[str]) -> "Encoder":
        """Load the folder of an autoencoder, in any format that can be read."""
        autoencoder, source = formats.load(folder)
        encode, width, name = autoencoder.encode, autoencoder.input_dim, type(autoencoder).__name__
        bos = bool(source.bos)
        return cls(encode, width, source.site, source.language_model, bos, name, autoencoder)


# A site, and the autoencoder that turns its activations into latents.
View = tuple[str, Encoder | None]


class ActivationReader:
    """Reads stimuli through a language model, and through autoencoders if there are any.

    `units` are the columns: `units` of the model or `latents` of the autoencoders; `bos` is true if
    a BOS token is read before each text. `load` gives the model when it is first needed.
    """

    def __init__(
        self,
        language_model: LanguageModelSpec,
        encoders: Sequence[Encoder] = (),
        load: Callable[[], LanguageModel] | None = None,
    ) -> None:
        self.language_model = language_model
        self.encoders = tuple(encoders)
        self.units = "latents" if encoders else "units"
        self.bos = any(encoder.bos for encoder in encoders)
        self._load = load or partial(LanguageModel.load, language_model)
        for encoder in encoders:
            if (known := encoder.language_model) not in (None, language_model.identity()):
                trained = f"the autoencoder was trained on the language model {known}"
                given = f"{language_model.name} is the model {language_model.identity()}"
                raise InputError(f"{trained}, and {given}; give that")
            if encoder.bos != self.bos:
                raise InputError("one autoencoder was trained with a BOS token, and one without")

    @cached_property
    def model(self) -> LanguageModel:
        """The language model, loaded once."""
        return self._load()

    def sites(self, patterns: str | Sequence[str]) -> list[str]:
        """Full names of the sites that match the patterns; each must be an autoencoder's."""
        spec, known = self.language_model, list(self.language_model.sites.taps)
        found: dict[str, None] = {}
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            several = set(pattern) & set("*?[")
            matching = fnmatch.filter(known, pattern) if several else [spec.sites.resolve(pattern)]
            if not matching:
                some = f"{', '.join(known[:3])} … {known[-1]}"
                raise InputError(f"no site of {spec.name} matches {pattern!r}; it has {some}")
            found.update(dict.fromkeys(matching))
        for site in found:
            self.encoders_at(site)
        return list(found)

    def encoders_at(self, site: str) -> list[Encoder]:
        """The autoencoders of a site, checked to be there, if there are any at all, and to fit."""
        found = [encoder for encoder in self.encoders if encoder.site in (None, site)]
        if self.encoders and not found:
            trained = ", ".join(str(encoder.site) for encoder in self.encoders)
            given = f"the autoencoder was trained at {trained}, and {site} is asked for"
            raise InputError(f"{given}; give sites: {trained}, or leave the autoencoder out")
        width = self.language_model.sites.width(site)
        for encoder in found:
            if width != encoder.width:
                taken = f"the autoencoder takes activations of width {encoder.width}"
                there = f"{site} of {self.language_model.name} is {width} wide"
                raise InputError(f"{taken}, and {there}; give the autoencoder of that site")
        return found

    def view(self, site: str) -> View:
        """A site with its autoencoder, if there is one."""
        if len(encoders := self.encoders_at(site)) > 1:
            given = f"{len(encoders)} autoencoders of {site} are given"
            raise InputError(f"{given}; give one, or compare them (representational_similarity)")
        return site, encoders[0] if encoders else None

    def pooled(self, prepared: Prepared, views: Iterable[View]) -> dict[View, NDArray[np.float32]]:
        """The vector of each item, `(items, units)`, in views, read in one pass."""
        vectors: dict[View, list[NDArray[np.float32]]] = {view: [] for view in views}
        sites = list(dict.fromkeys(site for site, _ in vectors))
        for text, acts in self._texts(prepared.tokens, sites):
            for (site, encoder), rows in vectors.items():
                chosen = _encoded(acts[site][list(prepared.pool[text])], encoder)
                rows.append(chosen.mean(dim=0).numpy())
        return {view: np.stack(rows) for view, rows in vectors.items()}

    def every_token(
        self, texts: Sequence[Sequence[int]], site: str
    ) -> Iterator[NDArray[np.float32]]:
        """The vectors of all tokens of each text, `(tokens, units)`, read as they are asked for."""
        _, encoder = self.view(site)
        for _, acts in self._texts(texts, [site]):
            yield _encoded(acts[site], encoder).numpy()

    def _texts(
        self, texts: Sequence[Sequence[int]], sites: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Read texts, after a BOS token, which is left out again, where the encoder needs it."""
        bos = [bos_id(self.model.tokenizer)] if self.bos else []
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = texts[start : start + BATCH_TEXTS]
            tokens = Tokens.of([[*bos, *text] for text in batch])
            acts = self.model.read(tokens, sites, batch_size=BATCH_TEXTS)
            for row, text in enumerate(batch):
                own = slice(len(bos), len(bos) + len(text))
                yield start + row, {site: values[row, own] for site, values in acts.items()}


@torch.no_grad()
def _encoded(activations: Tensor, encoder: Encoder | None) -> Tensor:
    activations = activations.float().cpu()
    return activations if encoder is None else encoder.encode(activations)
