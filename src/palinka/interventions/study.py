"""Studies: runs of a model that an analysis of interventions is made of."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.errors import InputError
from palinka.interventions.pairs import Pairs
from palinka.language_models import LanguageModel
from palinka.language_models.edits import EncodesAndDecodes, latents_of


class Measured(NamedTuple):
    """Data of one call of an analysis."""

    part: str  # name of the part of the findings; `""` where there is one
    data: Mapping[str, Any]  # arrays by the names of the analysis's parameters
    context: Mapping[str, Any] = {}  # labels for its figures


@dataclass(frozen=True)
class Study:
    """The model, the prompts and the choices that the runs of an analysis start from.

    Attributes:
        model: The language model.
        pairs: The prompts; None for stimuli of another kind.
        tokens: Token ids of each text of the stimuli.
        sites: Full names of the sites that the entry names.
        metrics: Outcomes to measure, names of `palinka.interventions.metrics`.
        dictionaries: Autoencoders by site, where latents are changed in place of units.
        units: Units of a site that an earlier analysis found, the strongest first; called with the
            site and a selection, such as `analysis="him_her", by="t", k=20`.
        texts: Token ids of the texts of a stimuli file, by condition, from its path.
        clusters: Template of each of the `tokens`, or number of its frame; default one of its own.
        findings: Arrays of an earlier analysis of other stimuli; called with the site and its name.
    """

    model: LanguageModel
    pairs: Pairs | None
    tokens: Sequence[Sequence[int]] = ()
    sites: Sequence[str] = ()
    metrics: Sequence[str] = ("logit_difference",)
    dictionaries: Mapping[str, EncodesAndDecodes] = field(default_factory=dict)
    units: Callable[..., NDArray[np.int64]] | None = None
    texts: Callable[[str], Mapping[str, Sequence[Sequence[int]]]] | None = None
    clusters: Sequence[Any] = ()
    findings: Callable[[str, str], Mapping[str, NDArray[Any]]] | None = None

    @property
    def prompts(self) -> Pairs:
        """The pairs of prompts, or an `InputError` where the stimuli are of another kind."""
        if self.pairs is None:
            raise InputError("this analysis needs prompts with answers; give paired stimuli")
        return self.pairs

    def data(self, found: Any, metric: str) -> dict[str, Any]:
        """The data of analyses of one metric that all `Outcomes` have."""
        return {
            "clean": found.clean[metric],
            "corrupted": found.corrupted.get(metric),
            "clusters": self.clusters if self.pairs is None else self.pairs.templates,
            "outcome": metric,
            "solved": found.solved,
        }

    def part(self, metric: str) -> str:
        """Name of the part of the findings that is of a metric; empty where there is one."""
        return metric if len(self.metrics) > 1 else ""

    def dictionary(self, site: str) -> EncodesAndDecodes | None:
        """The autoencoder of a site, if there is one; an `InputError` if it is a transcoder."""
        found = self.dictionaries.get(site)
        if getattr(getattr(found, "autoencoder", found), "is_transcoder", False):
            given = f"the autoencoder of {site} is a transcoder, which writes at another site"
            raise InputError(f"{given}; give one that reconstructs {site}, or leave it out")
        return found

    def of_latents(self, site: str) -> EncodesAndDecodes:
        """The autoencoder of a site, with the errors of `dictionary`, and where there is none."""
        if (found := self.dictionary(site)) is None:
            needed = "need an autoencoder; give ckpt_path or autoencoder"
            raise InputError(f"latents of {site} {needed}")
        return found

    def check_units(self, site: str, units: Sequence[int], latents: bool = True) -> int:
        """Count the units or latents of a site, and raise an `InputError` if some do not exist."""
        dictionary, count = self.dictionary(site) if latents else None, self.model.width(site)
        if dictionary is not None:
            dtype = torch.promote_types(self.model.model.dtype, torch.float32)
            count = latents_of(dictionary, torch.zeros(1, count, dtype=dtype)).shape[1]
        if unknown := [unit for unit in units if not 0 <= unit < count]:
            kind = "units" if dictionary is None else "latents"
            some = ", ".join(map(str, unknown[:8]))
            raise InputError(f"{site} has {kind} 0 to {count - 1}, and {some} are given")
        return count

    def selected(
        self, selection: Mapping[str, Any] | None, components: Sequence[str], units: Sequence[int]
    ) -> Sequence[int]:
        """Units of the one site that an earlier analysis found, or those given without one."""
        if selection is None:
            return units
        if len(self.sites) != 1 or self.units is None:
            raise InputError(f"a selection of units needs one site; {len(self.sites)} are given")
        if "neurons" in components and self.sites[0] in self.dictionaries:
            raise InputError("the selection is of latents; give latents in place of neurons")
        return [int(unit) for unit in self.units(self.sites[0], **selection)]


# By the data that an analysis takes; each is a function of its module's name, of a study and
# settings, that yields what the analysis is called with.
STUDIES = {
    "estimated effects of patches": "attribution",
    "effects of paths": "paths",
    "lesions": "lesion",
    "predictions of layers": "lens",
    "contributions to logits": "logit_attribution",
    "effects of patching": "patching",
    "effects of ablation": "ablation",
    "attention patterns": "heads",
    "doses of directions": "steering",
    "removals of subspaces": "subspace_removal",
}


def find_study(data: str) -> Callable[..., Iterator[Measured]] | None:
    """The function that makes the data of an analysis, if runs of the model do."""
    if (name := STUDIES.get(data)) is None:
        return None
    function: Callable[..., Iterator[Measured]] = getattr(
        importlib.import_module(f"palinka.interventions.{name}"), name
    )
    return function
