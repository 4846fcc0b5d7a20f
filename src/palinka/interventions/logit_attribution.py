"""Contributions of a model's components to a logit difference."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from palinka.errors import InputError
from palinka.interventions.directions import latents_and_slope
from palinka.interventions.lens import TargetTokens, frozen_direction, through_norm
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel
from palinka.language_models.sites import input_rows

INSIDE = re.compile(r"(blocks\.\d+\.(?:attn|mlp)\.)(z|post|out)")
IN_STREAM = re.compile(r"embed|hidden\.\d+|blocks\.\d+\.(resid|resid_mid|(attn|mlp)\.write)")
IN_SITE = "in "


def logit_attribution(study: Study, *, units: bool = False) -> Iterator[Measured]:
    """Take the logit difference apart into what each component adds to the residual stream.

    Args:
        study: The model and the texts.
        units: Also take apart what the units, or latents, of the entry's sites add to it.
    """
    model, targets = study.model, TargetTokens.of(study)
    taps, layers, count = model.spec.sites.taps, model.spec.sites.layers, model.heads.count
    last, chosen = f"blocks.{layers - 1}.resid", study.sites if units else ()
    inner = [f"blocks.{i}.{part}" for i in range(layers) for part in ("attn", "mlp")]
    normed = [f"{part}.out" for part in inner if taps[f"{part}.out"] != taps[f"{part}.write"]]
    written = [f"{part}.write" for part in inner]
    heads = [f"blocks.{i}.attn.z" for i in range(layers)]
    sites = [*(f"hidden.{i}" for i in range(layers)), last]
    parts: dict[str, list[Tensor]] = {}
    for some, acts in targets.read(model, ["embed", *sites, *heads, *normed, *written, *chosen]):
        wrong = None if targets.wrong is None else targets.wrong[some]
        functional, constant = frozen_direction(model, acts[last], targets.answers[some], wrong)
        by_site = {site: (acts[site] * functional).sum(1) for site in ["embed", *sites, *written]}
        found = {"embed": by_site["embed"], "positions": by_site["hidden.0"] - by_site["embed"]}
        found |= _of_heads(model, heads, count, functional, acts)
        found["attn.out"], found["mlp.out"] = (
            torch.stack([by_site[site] for site in written[first::2]]) for first in (0, 1)
        )
        found["resid"] = torch.stack([by_site[site] + constant for site in sites])
        found["constant"] = constant
        for site in chosen:
            own, slope = acts[site], functional_at(model, site, functional, acts)
            if (dictionary := study.dictionary(site)) is not None:
                own, slope = latents_and_slope(dictionary, own, slope)
            found[IN_SITE + site] = (own * slope).T
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    whole = {n: torch.cat(each, -1).double().cpu().numpy() for n, each in parts.items()}
    kept = {n: v for n, v in whole.items() if not n.startswith(IN_SITE) and v.any()}
    unit = "text" if study.pairs is None else "template"
    shared = {"logit_difference": whole["resid"][-1], "clusters": targets.clusters, "unit": unit}
    alone = "logit of the next token, about the mean"
    context = {"target": alone if targets.wrong is None else "logit difference"}
    yield Measured("", {"contributions": kept, **shared}, context)
    for site in chosen:
        kind, each = "latent" if site in study.dictionaries else "unit", whole[IN_SITE + site]
        acting = np.flatnonzero(each.any(axis=1))
        axes = {f"{kind}s": {kind: acting.tolist()}}
        yield Measured(
            site, {"contributions": {f"{kind}s": each[acting]}, "axes": axes, **shared}, context
        )


def functional_at(
    model: LanguageModel, site: str, functional: Tensor, acts: Mapping[str, Tensor]
) -> Tensor:
    """A functional of the residual stream, `(rows, width)`, as one of activations at a site.

    By the direct path alone. `acts` has `blocks.{i}.attn.out` or `.mlp.out` of a site in families
    with a norm of what is written, whose scale is frozen.
    """
    sites = model.spec.sites
    name = sites.resolve(site)
    inside = INSIDE.fullmatch(name)
    if inside is None:
        if not IN_STREAM.fullmatch(name) or name == f"hidden.{sites.layers}":
            raise InputError(f"{name} has no direct path to the logits; choose resid or mlp.post")
        return functional
    out, write, own = (sites.tap(s).module for s in (f"{inside[1]}out", f"{inside[1]}write", name))
    if write != out:
        norm = model.model.get_submodule(write)
        functional, _ = through_norm(norm, acts[f"{inside[1]}out"], functional)
    if inside[2] != "out":
        functional = functional @ input_rows(model.model.get_submodule(own)).to(functional).T
    return functional


def _of_heads(
    model: LanguageModel, sites: list[str], count: int, functional: Tensor,
    acts: Mapping[str, Tensor],
) -> dict[str, Tensor]:  # fmt: skip
    """Contributions of the heads, `(layers, heads, rows)`, and of the biases added to them."""
    heads, biases = [], []
    for site in sites:
        out = functional_at(model, site.removesuffix("z") + "out", functional, acts)
        projection = model.model.get_submodule(model.spec.sites.tap(site).module)
        each = acts[site] * (out @ input_rows(projection).to(out).T)
        heads.append(each.reshape(len(each), count, -1).sum(2).T)
        bias = getattr(projection, "bias", None)
        biases.append(out.new_zeros(len(out)) if bias is None else out @ bias.to(out))
    return {"heads": torch.stack(heads), "attn.bias": torch.stack(biases)}
