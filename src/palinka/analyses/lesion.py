"""Effects of ablating selected units together, against matched control sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Mask, Table, p_text, takes
from palinka.analyses.stats.comparison import adjusted_p_values
from palinka.analyses.stats.controls import (
    Side,
    corrected_p_values,
    interval,
    set_p_values,
    standardized,
)
from palinka.analyses.stats.effects import (
    Axes,
    Effects,
    PairedArguments,
    cluster_means,
    kept_prompts,
    measure_effects,
)
from palinka.errors import InputError, counted

Correction = Literal["max", "benjamini_hochberg"]
# A control unit is one of 20 like the selected one: to these, other units vary as much as they do
# about their own mean times this, the standard error of a prediction.
SPREAD = np.sqrt(21 / 19)
# Selected and control units further apart, in standard deviations, are not alike.
MAX_DIFFERENCE = 0.1


@dataclass(frozen=True)
class Lesion(Effects):
    """Effects of lesions; a cell is a site, and its p-values come from the control sets.

    Attributes:
        null: Effects of the control sets, `(sites, draws)`.
        z: Effect in standard deviations from the mean of the control sets and the selected one.
        percentile: Percentage of the control sets with a lower effect.
        units: The selected units, `(sites, k)`; -1 at a site without as many, which is NaN.
        balance_before: Difference of the selected units from all others in activation and in the
            norm of what they write, in standard deviations, `(sites, 2)`.
        balance_after: The same from their controls.
        effect_preferred: Effect on the prompts whose answer the units prefer.
        effect_other: Effect on the others.
        specificity: Effect on the preferred minus on the other prompts.
        specificity_p: Share of the sets with at least its |specificity|.
        dose_effect: Effect of the strongest units, by their number, `(sites, doses)`.
        dose_low: Lower bound of its bootstrap interval over clusters.
        dose_high: The upper bound.
        dose_null_low: Lower bound of the middle `level` of as many control units.
        dose_null_high: The upper bound.
        dose_p: P-values of the doses, each by itself.
        doses: Numbers of units.
        side: `"two"`, or `"one"` for lesions that lower the outcome.
        correction: `"max"`, by the largest |z|, or `"benjamini_hochberg"`.
    """

    null: Array
    z: Array
    percentile: Array
    units: NDArray[np.int64]
    balance_before: Array
    balance_after: Array
    effect_preferred: Array
    effect_other: Array
    specificity: Array
    specificity_p: Array
    dose_effect: Array
    dose_low: Array
    dose_high: Array
    dose_null_low: Array
    dose_null_high: Array
    dose_p: Array
    doses: tuple[int, ...]
    side: Side
    correction: Correction

    def strongest(self) -> list[int]:
        """The site whose effect is furthest from those of its controls, on the tested side."""
        return [int(np.nanargmax(-self.z if self.side == "one" else np.abs(self.z)))]

    def scalars(self) -> dict[str, float]:
        """Numbers of the strongest site, and of the whole; none are NaN."""
        (at,) = self.strongest()
        own = {"control_effect": self.null[at].mean(), "percentile": self.percentile[at]}
        own |= {"specificity": self.specificity[at], "specificity_p": self.specificity_p[at]}
        found = {f"strongest_{name}": float(x) for name, x in own.items() if not np.isnan(x)}
        return super().scalars() | found

    def place(self) -> str:
        """The strongest site in words."""
        label = list(self.cells()[self.strongest()[0]].items())[-1]
        return str(label[1]) if isinstance(label[1], str) else " ".join(map(str, label))

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """Effect of the strongest site, those of its controls, and p."""
        (at,) = self.strongest()
        null, sites, outcome = self.null[at], len(self.effect), self.outcome.replace("_", " ")
        p = p_text(self.p_corrected[at], alpha=1 - self.level)
        return (
            f"lesion of {counted(self.units.shape[1], units)} of {self.place()}: effect "
            f"{self.effect[at]:.3g} on the {outcome}, that of {len(null)} matched "
            f"sets {null.mean():.3g} ± {null.std():.3g}; {p}"
            f"{f', corrected for {sites} sites' * (sites > 1)}"
        )

    def tables(self) -> dict[str, Table]:
        """The table `cells`, and `doses`, a row for each number of units at each site."""
        site, dose = (index.ravel() for index in np.indices(self.dose_effect.shape))
        axis, labels = next(iter(self.axes[""].items()))
        table: Table = {axis: [labels[int(i)] for i in site], "k": [self.doses[i] for i in dose]}
        names = [name for name in vars(self) if name.startswith("dose_")]
        return super().tables() | {"doses": table | {n: getattr(self, n).ravel() for n in names}}


@takes("lesions")
def lesion(
    lesioned: ArrayLike, clean: ArrayLike, corrupted: ArrayLike | None = None, *, units: ArrayLike,
    doses: Sequence[int] | None = None, balance: ArrayLike | None = None,
    preferred: ArrayLike | None = None, side: Side = "two", correction: Correction = "max",
    **options: Unpack[PairedArguments],
) -> Lesion:  # fmt: skip
    """Compare the effect of ablating selected units together with that of matched controls.

    An effect `e` is the mean over clusters of the outcome with the lesion minus that of the clean
    run. A control set has as many other units that are as active and write as much. With `side`
    `"two"`, `p = (1 + #{|e_draw| >= |e|}) / (draws + 1)`, where deviations of the draws from their
    mean count 1.05 times: each unit of a draw is one of 20 candidates, without the selected unit,
    which vary less than that unit does about them. P of a single unit means no less than 1/21. It
    is about these prompts; the interval is about further templates.

    Over several sites, effects are standardized over the sets of a site, and the largest |z| of
    each draw is the null; or p-values are adjusted to hold the share of false ones among the sites
    that are found.

    Units must be selected on other prompts than these.

    Args:
        lesioned: Outcomes by site, number of units, and set, `(sites, doses, 1 + draws, prompts)`;
            the selected units come first. NaN where a site has too few.
        clean: Outcomes of the clean runs, `(prompts,)`.
        corrupted: Those of the corrupted runs; without, there is no recovery.
        units: The selected units, `(sites, k)`.
        doses: Numbers of units, k among them; default k alone.
        balance: Standardized difference in activation and in output norm of the k units before
            and after matching, `(sites, 2, 2)`.
        preferred: Mask of the prompts whose answer the units prefer, `(prompts,)`.
        side: `"one"` for the hypothesis that the selected units support the answer, so that their
            lesion lowers the outcome more; not for `rank` and `kl`, which are no worse if lower.
        correction: `"max"`, or `"benjamini_hochberg"` for profiles over many sites.
        **options: Those of `activation_patching`, without permutations; `axes` are of sites, such
            as `{"": {"layer": range(12)}}`.

    Source:
        Phipson & Smyth (2010) for the ones; Westfall & Young (1993) for the largest.
    """
    outcome, level = options.get("outcome", ""), options.get("level", 0.95)
    if side == "one" and outcome in ("rank", "kl"):
        what = f"side one tests a lower {outcome}, which is not a worse one"
        raise InputError(f"{what}; set side: two")
    outcomes, chosen = np.asarray(lesioned, np.float64), np.asarray(units, np.int64)
    numbers = (chosen.shape[1],) if doses is None else tuple(int(k) for k in doses)
    if outcomes.shape[:2] != (len(chosen), len(numbers)) or chosen.shape[1] not in numbers:
        given = f"lesioned has the shape {outcomes.shape}, and units {chosen.shape}"
        raise InputError(f"{given}; expected (sites, {len(numbers)}, sets, prompts), (sites, k)")
    at, missing = numbers.index(chosen.shape[1]), np.isnan(outcomes[:, :, 0, 0])
    if missing[:, at].all():
        raise InputError(f"no site has {chosen.shape[1]} units to lesion; select fewer")
    labels = options.get("axes") or {"": {"site": list(range(len(chosen)))}}
    before = np.asarray(clean, np.float64)
    filled = np.where(missing[:, [at]], before, outcomes[:, at, 0])
    untested: Any = {**options, "axes": labels, "permutations": 0}
    fields = measure_effects(filled, clean, corrupted, **untested)
    for name in ("effect", "recovery"):
        for each in (name, f"{name}_low", f"{name}_high"):
            fields[each] = np.where(missing[:, at], np.nan, fields[each])
    cluster, kept = np.array(fields["cluster"]), kept_prompts(clean, corrupted, options)
    effects = (outcomes - before)[..., kept]
    of_clusters = cluster_means(effects, cluster)
    dose_low, dose_high = interval(of_clusters[:, :, 0], options)
    means = of_clusters.mean(axis=-1)
    own, null, sets = means[:, at, 0], means[:, at, 1:], _spread(means[:, at])
    p, p_corrected = set_p_values(sets, side), corrected_p_values(sets, side)
    if correction == "benjamini_hochberg":
        p_corrected = np.full(len(p), np.nan)
        p_corrected[~missing[:, at]] = adjusted_p_values(p[~missing[:, at]], correction)
    parts = np.full((2, *means[:, at].shape), np.nan)
    if preferred is not None:
        for part, mask in enumerate((of := np.asarray(preferred, bool)[kept], ~of)):
            parts[part] = cluster_means(effects[:, at][..., mask], cluster[mask]).mean(axis=-1)
    tails = (1.0 - level) / 2.0, (1.0 + level) / 2.0
    band = np.quantile(means[:, :, 1:], tails, axis=-1)
    shape = len(chosen), 2, 2
    balances = np.full(shape, np.nan) if balance is None else np.reshape(balance, shape)
    return Lesion(**fields | {
        "effects": np.where(missing[:, [at]], np.nan, effects[:, at, 0]),
        "p": p, "p_corrected": p_corrected, "significant": p_corrected <= round(1.0 - level, 12),
        "null": null, "z": standardized(means[:, at])[:, 0], "units": chosen, "side": side,
        "correction": correction,
        "percentile": np.where(missing[:, at], np.nan, 100.0 * (null < own[:, None]).mean(axis=1)),
        "balance_before": balances[:, 0], "balance_after": balances[:, 1],
        "effect_preferred": parts[0, :, 0], "effect_other": parts[1, :, 0],
        "specificity": parts[0, :, 0] - parts[1, :, 0],
        "specificity_p": set_p_values(_spread(parts[0] - parts[1]), side), "doses": numbers,
        "dose_effect": means[:, :, 0], "dose_low": dose_low, "dose_high": dose_high,
        "dose_null_low": band[0], "dose_null_high": band[1],
        "dose_p": set_p_values(_spread(means), side),
        "notes": (*fields["notes"], *_remarks(labels, missing[:, at], balances[:, 1])),
    })  # fmt: skip


def _spread(sets: Array) -> Array:
    """Effects of sets, `(…, 1 + draws)`, with those of the draws spread out about their mean."""
    mean = sets[..., 1:].mean(axis=-1, keepdims=True)
    return np.concatenate([sets[..., :1], mean + SPREAD * (sets[..., 1:] - mean)], axis=-1)


def _remarks(axes: Axes, missing: Mask, after: Array) -> Iterator[str]:
    """Notes of sites without enough units, and of those without units like the selected ones."""
    ((axis, labels),) = axes[""].items()
    if missing.any():
        sites = ", ".join(str(labels[i]) for i in np.flatnonzero(missing).tolist())
        yield f"{axis} {sites}: too few units are selected; NaN"
    for what, differences in zip(("activation", "output norm"), after.T, strict=True):
        far = np.flatnonzero(np.abs(differences) > MAX_DIFFERENCE).tolist()
        if sites := ", ".join(f"{labels[i]} ({differences[i]:.2f})" for i in far):
            yield (
                f"{axis} {sites}: no other units are like these; their {what} differs from that "
                "of their controls by this many standard deviations, and the control is weaker"
            )
