"""Activations and latents of stimuli."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
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
from palinka.language_models.token_text import bos_id

BATCH_TEXTS = 16


@dataclass(frozen=True)
class Encoder:
    """An autoencoder at a site, which turns its activations into latents.

    Attributes:
        encode: Raw activations `(…, width)` to latents `(…, latents)`.
        width: Width of those activations.
        site: The full name of the site it was trained on, where that is known.
        language_model: The identity of the model it was trained on, where that is known.
        bos: True if the contexts that it was trained on began with a BOS token.
        described: Name of the class, for the record.
    """

    encode: Callable[[Tensor], Tensor]
    width: int
    site: str | None = None
    language_model: str | None = None
    bos: bool = False
    described: str = "autoencoder"

    @classmethod
    def from_folder(cls, folder: str | PathLike[str]) -> "Encoder":
        """Load the folder of an autoencoder, in any format that can be read."""
        autoencoder, source = formats.load(folder)
        encode, width, name = autoencoder.encode, autoencoder.input_dim, type(autoencoder).__name__
        return cls(encode, width, source.site, source.language_model, bool(source.bos), name)


class ActivationReader:
    """Reads stimuli through a language model, and through an autoencoder if there is one.

    `units` are the columns: `units` of the model or `latents` of the autoencoder; `bos` is true if
    a BOS token is read before each text. `load` gives the model when it is first needed.
    """

    def __init__(
        self,
        language_model: LanguageModelSpec,
        encoder: Encoder | None = None,
        load: Callable[[], LanguageModel] | None = None,
    ) -> None:
        self.language_model = language_model
        self.encoder = encoder
        self.units = "units" if encoder is None else "latents"
        self.bos = encoder is not None and encoder.bos
        self._load = load or partial(LanguageModel.load, language_model)
        known = encoder.language_model if encoder else None
        if known not in (None, language_model.identity()):
            trained = f"the autoencoder was trained on the language model {known}"
            given = f"{language_model.name} is the model {language_model.identity()}"
            raise InputError(f"{trained}, and {given}; give that")

    @cached_property
    def model(self) -> LanguageModel:
        """The language model, loaded once."""
        return self._load()

    def sites(self, patterns: str | Sequence[str]) -> list[str]:
        """Full names of the sites that match the patterns; each must be the autoencoder's."""
        spec, known = self.language_model, list(self.language_model.sites.taps)
        found: dict[str, None] = {}
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            several = set(pattern) & set("*?[")
            matching = fnmatch.filter(known, pattern) if several else [spec.sites.resolve(pattern)]
            if not matching:
                some = f"{', '.join(known[:3])} … {known[-1]}"
                raise InputError(f"no site of {spec.name} matches {pattern!r}; it has {some}")
            found.update(dict.fromkeys(matching))
        if (encoder := self.encoder) is not None:
            for site in found:
                if encoder.site not in (None, site):
                    trained = f"the autoencoder was trained at {encoder.site}"
                    advice = "analyze the former, or leave the autoencoder out"
                    raise InputError(f"{trained}, and {site} is asked for; {advice}")
                if (width := spec.sites.width(site)) != encoder.width:
                    taken = f"the autoencoder takes activations of width {encoder.width}"
                    there = f"{site} of {spec.name} is {width} wide"
                    raise InputError(f"{taken}, and {there}; give the autoencoder of that site")
        return list(found)

    def pooled(self, prepared: Prepared, sites: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vector of each item, `(items, units)`, at each site, read in one pass."""
        vectors: dict[str, list[NDArray[np.float32]]] = {site: [] for site in sites}
        for text, acts in self._texts(prepared.tokens, sites):
            for site, rows in vectors.items():
                chosen = self._encoded(acts[site][list(prepared.pool[text])])
                rows.append(chosen.mean(dim=0).numpy())
        return {site: np.stack(rows) for site, rows in vectors.items()}

    def every_token(
        self, texts: Sequence[Sequence[int]], site: str
    ) -> Iterator[NDArray[np.float32]]:
        """The vectors of all tokens of each text, `(tokens, units)`, read as they are asked for."""
        for _, acts in self._texts(texts, [site]):
            yield self._encoded(acts[site]).numpy()

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
    def _encoded(self, activations: Tensor) -> Tensor:
        activations = activations.float().cpu()
        return activations if self.encoder is None else self.encoder.encode(activations)
