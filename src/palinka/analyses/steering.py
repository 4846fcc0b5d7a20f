"""Dose response of an outcome to directions that are added to activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike

from palinka.analyses.result import Array, Table, p_text, takes
from palinka.analyses.stats.controls import Controlled, controlled_fields, interval, mean_changes
from palinka.analyses.stats.effects import ControlledArguments
from palinka.analyses.stats.permutation import permutation_p_values
from palinka.errors import InputError

SMALL, KL_AT = 0.1, 0.1  # strengths of the slope; nats at which effects are compared


@dataclass(frozen=True)
class Steering(Controlled):
    """Effects of directions at each strength, against controls of equal norm.

    Effects and divergences, on neutral text, are `(directions, strengths)`, the p-values are those
    of the slope, `(controls, directions)`, and effects of controls `(controls, draws, strengths)`.

    Attributes:
        slope: Slope of the effect over small strengths, by least squares, `(directions,)`.
        slope_low: Lower bound of its bootstrap interval over clusters.
        slope_high: The upper bound.
        effect_at_kl: Effect where the divergence first reaches `KL_AT`, interpolated linearly, for
            negative and for positive strengths, `(directions, 2)`; NaN where it does not.
        control_slope: Slopes of the controls, `(controls, draws)`.
        control_kl: Divergences of the first draws, `(controls, some draws, strengths)`.
        alphas: Strengths in ascending order, in median norms of the activations.
        directions: Names of the directions.
    """

    slope: Array
    slope_low: Array
    slope_high: Array
    effect_at_kl: Array
    control_slope: Array
    control_kl: Array
    alphas: Array
    directions: tuple[str, ...]

    def scalars(self) -> dict[str, float]:
        """Slopes with their p-values, and effects at equal divergence; none are NaN."""
        numbers: dict[str, float] = {}
        for d, name in enumerate(self.directions):
            numbers[f"{name}/slope"] = self.slope[d]
            for control, p in zip(self.controls, self.p[:, d], strict=True):
                numbers[f"{name}/{control}_p_value"] = p
            for side, effect in zip(("negative", "positive"), self.effect_at_kl[d], strict=True):
                numbers[f"{name}/effect_at_kl_{side}"] = effect
        numbers |= {"prompts": self.prompts, "clusters": self.clusters}
        return {name: float(value) for name, value in numbers.items() if not np.isnan(value)}

    def tables(self) -> dict[str, Table]:
        """The table `doses`, a row for each direction and strength, and `directions`."""
        slopes = "slope", "slope_low", "slope_high", "p"
        of_direction = self.table(*slopes, direction=self.directions)
        for side, effect in zip(("negative", "positive"), self.effect_at_kl.T, strict=True):
            of_direction[f"effect_at_kl_{side}"] = effect
        effects = "effect", "effect_low", "effect_high", "kl"
        doses = self.table(*effects, direction=self.directions, alpha=self.alphas)
        return {"doses": doses, "directions": of_direction}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """The slope of the first direction with its p-values."""
        alpha = round(1.0 - self.level, 12)
        tests = [
            f"{p_text(float(p), alpha=alpha)} against {control.replace('_', ' ')}"
            for control, p in zip(self.controls, self.p[:, 0], strict=True)
        ]
        what = f"{self.directions[0]} moves the {self.outcome.replace('_', ' ')}"
        draws = f"{self.control_slope.shape[1]} draws of each control"
        return f"{what} by {self.slope[0]:.3g} per median norm; {'; '.join(tests)} ({draws})"


@takes("doses of directions")
def steering(
    steered: ArrayLike, clean: ArrayLike, alphas: ArrayLike, controls: Mapping[str, ArrayLike],
    kl: ArrayLike, control_kl: Mapping[str, ArrayLike], directions: Sequence[str],
    **options: Unpack[ControlledArguments],
) -> Steering:  # fmt: skip
    """Measure how an outcome and a side effect depend on how much of a direction is added.

    Any large push changes the output. Controls are pushes of the same norm: the p-value of a
    direction is `(1 + #{|slope of a control| >= |slope|}) / (draws + 1)`. It is exact where the
    direction is drawn as the controls are; that of labels without meaning is nearly so among
    directions of shuffled labels, from about 24 texts of each condition.

    Args:
        steered: Outcomes of the prompts with each direction at each strength,
            `(directions, strengths, prompts)`.
        clean: Outcomes of the prompts without, `(prompts,)`.
        alphas: Strengths, in ascending order and with 0, `(strengths,)`.
        controls: By name outcomes as `steered`, `(draws, strengths, prompts)`, as many for each.
        kl: Divergence on neutral text, `(directions, strengths)`.
        control_kl: That of the first draws of each control, `(some draws, strengths)`.
        directions: Names of the directions.
        **options: Clusters and outcome; level, resamples and seed, as for `activation_patching`.
    """
    strengths, n = np.asarray(alphas, float), np.size(clean)
    for name, array in {"steered": steered, **controls}.items():
        if (shape := np.shape(array))[-2:] != (len(strengths), n):
            given = f"{name} has the shape {shape}"
            raise InputError(f"{given}; expected (…, {len(strengths)} strengths, {n} prompts)")
    inside = np.abs(strengths) <= SMALL * (1 + 1e-9)
    if inside.sum() < 2:
        given = f"{strengths.tolist()} are given"
        raise InputError(f"a slope needs at least two alphas up to {SMALL:g}; {given}")
    centered = np.where(inside, strengths - strengths[inside].mean(), 0.0)
    weights = centered / np.square(centered).sum()
    changes = mean_changes(steered, clean, options.get("clusters"))
    fields = controlled_fields(changes, clean, controls, options)
    slopes, effect, divergence = weights @ changes, fields["effect"], np.asarray(kl, float)
    slope, (slope_low, slope_high) = slopes.mean(axis=-1), interval(slopes, options)
    control_slope = fields["control_effect"] @ weights
    sides = [np.flatnonzero(strengths <= 0)[::-1], np.flatnonzero(strengths >= 0)]
    at_kl = [
        [_at_divergence(e[side], k[side]) for side in sides]
        for e, k in zip(effect, divergence, strict=True)
    ]
    return Steering(
        **fields, kl=divergence, slope=slope, slope_low=slope_low, slope_high=slope_high,
        effect_at_kl=np.array(at_kl), control_slope=control_slope,
        p=np.array([permutation_p_values(np.abs(slope), np.abs(null)) for null in control_slope]),
        control_kl=np.array([np.asarray(control_kl[name], float) for name in controls]),
        alphas=strengths, directions=tuple(directions),
    )  # fmt: skip


def _at_divergence(effect: Array, kl: Array) -> float:
    """Effect where the divergence first reaches `KL_AT`; strengths go away from 0."""
    reached = np.flatnonzero(kl >= KL_AT)
    if not len(reached) or reached[0] == 0:
        return np.nan
    k = int(reached[0])
    share = (KL_AT - kl[k - 1]) / (kl[k] - kl[k - 1])
    return float(effect[k - 1] + share * (effect[k] - effect[k - 1]))
