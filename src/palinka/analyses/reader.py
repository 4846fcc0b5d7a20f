"""Activations and latents of stimuli."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, combinations
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.analyses.findings import within_part
from palinka.analyses.stimuli import Prepared
from palinka.autoencoders import formats
from palinka.errors import InputError, escape_control_chars
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


class Call(NamedTuple):
    """One call of an analysis."""

    part: str  # of the stimuli and sites, such as `hidden.3/comma`; `""` where there is one
    site: str  # the site of its data, or the last of those that are compared
    data: Mapping[str, Any]  # by the names in `DATA_PARAMETERS`
    context: Mapping[str, Any]  # labels for its figures


def calls_of(
    data: str, prepared: Prepared, patterns: str | list[str], reader: ActivationReader
) -> Iterator[Call]:
    """The calls of an analysis: one, or one for each site, pair, condition or category."""
    sites = reader.sites(patterns)
    several = len(sites) > 1
    if data in ("tokens of a passage", "categories of a passage"):
        if any(prepared.pool):
            raise InputError("this analysis goes over all tokens of a text; give a passage")
        of_tokens: dict[str, Any] = {"words": np.concatenate(prepared.tokens)}
        lengths = [len(text) for text in prepared.tokens]
        of_tokens["documents"] = np.repeat(np.arange(len(lengths)), lengths)
        context: dict[str, Any] = {"tokens": list(chain(*prepared.display))}
        for site in sites:
            latents = np.concatenate(list(reader.every_token(prepared.tokens, site)))
            if data == "tokens of a passage":
                yield Call(site if several else "", site, {"latents": latents}, context)
                continue
            for category, mask in prepared.targets.items():
                every = {"latents": latents, "targets": np.asarray(mask), **of_tokens}
                part = within_part(site if several else "", category)
                yield Call(part, site, every, {**context, "category": category})
        return
    if not any(prepared.pool):
        kinds = "contrast, words, carrier or occurrences"
        raise InputError(f"this analysis compares items; give {kinds} stimuli")
    labels = np.array([escape_control_chars(label) for label in prepared.labels])
    of_item = np.array(prepared.conditions)
    members = {name: of_item == name for name in dict.fromkeys(prepared.conditions)}
    if data == "two conditions" and len(members) != 2:
        given = f"{len(members)} are given: {', '.join(members)}"
        raise InputError(f"this analysis compares two conditions, and {given}")
    if data == "two sites":
        pairs = _pairs(patterns, reader)
        views = reader.pooled(prepared, chain(*pairs))
        for x, y in pairs:
            both: dict[str, Any] = {"x": views[x], "y": views[y]}
            if len(members) > 1:
                both["groups"] = list(prepared.conditions)
            part, names = f"{x[0]}/{y[0]}", (x[0], y[0])
            if x[0] == y[0]:
                first, second = ("latents 1", "latents 2") if x[1] else ("units", "latents")
                part, names = x[0], (f"{x[0]}, {first}", f"{y[0]}, {second}")
            context = {"items": labels.tolist(), "sites": names}
            yield Call(part if len(pairs) > 1 else "", y[0], both, context)
        return
    for (site, _), rows in reader.pooled(prepared, map(reader.view, sites)).items():
        if data == "two conditions":
            a, b = (rows[items] for items in members.values())
            context = {"items": labels.tolist(), "conditions": tuple(members)}
            yield Call(site if several else "", site, {"a": a, "b": b}, context)
            continue
        for condition, items in members.items():
            context = {"items": labels[items].tolist(), "condition": condition}
            context["conditions"] = tuple(members)
            yield Call(f"{site}/{condition}", site, {"x": rows[items]}, context)


def _pairs(patterns: str | list[str], reader: ActivationReader) -> list[tuple[View, View]]:
    """The pairs of sites, with their autoencoders, that an analysis compares.

    Two patterns are paired site by site, one of them repeated if it matches one site only; other
    sites are all compared with each other.
    """
    every = [reader.sites(each) for each in ([patterns] if isinstance(patterns, str) else patterns)]
    pairs = list(combinations(dict.fromkeys(chain(*every)), 2))
    if len(every) == 2 and len({*(counts := list(map(len, every)))} - {1}) <= 1:
        first, second = (matching * (max(counts) // len(matching)) for matching in every)
        pairs = list(zip(first, second, strict=True))
    found: list[tuple[View, View]] = []
    for x, y in pairs:
        if x != y:
            found.append((reader.view(x), reader.view(y)))
        elif encoders := reader.encoders_at(x):
            found.append(((x, encoders[0] if encoders[1:] else None), (y, encoders[-1])))
    if not found:
        given = f"{', '.join(chain(*every))} is given"
        advice = "give [x, y], or [s, s] with an autoencoder"
        raise InputError(f"this analysis compares two sites, and {given}; {advice}")
    return found
