"""Metrics beside those of dictionaries that were trained on a control."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from palinka.analyses.figures.forest import Row, forest
from palinka.evaluation.losses import RATIOS
from palinka.evaluation.representations import RANDOM
from palinka.evaluation.tasks import CONTROLS
from palinka.evaluation.values import (
    ALL,
    BETTER,
    Dictionary,
    Group,
    Measurement,
    Subject,
    Value,
    by_recipe,
    gap_method,
    gap_to_control,
    not_beaten,
    spanned,
)

# A control has no loss to recover: that of losses is the dictionary at initialization, in `core`.
LOSSES = tuple(RATIOS)
LABELS = {"tokens": "shuffled text", "embeddings": "random embeddings"}
LABELS |= {"coordinates": "shuffled coordinates"}
# Losses that are given beside those of dictionaries at initialization.
BESIDE_RANDOM, SAME_L0 = ("ce_delta", "kl", "loss_recovered", "loss_recovered_mean"), 0.01


def controls(
    subject: Subject, groups: Mapping[str, Group], control: Subject,
    of_control: Mapping[str, Group], mode: str,
) -> Group:  # fmt: skip
    """Compare the numbers of each recipe with those of the same recipe and seeds on a control.

    Source:
        Heap et al. (2025), arXiv 2501.17727.
    """
    label = LABELS.get(mode, "the random model")
    mine, theirs = (
        by_recipe(one, own.values()) for one, own in ((subject, groups), (control, of_control))
    )
    recipes = {ALL, *(one.recipe for one in subject.dictionaries)}
    seeds = {one.name: one.seed for one in (*subject.dictionaries, *control.dictionaries)}
    values: list[Value] = []
    beside: list[Value] = []
    unbeaten: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    panels: dict[str, list[Row]] = defaultdict(list)

    def judge(
        own: Value, value: Value, gap: Value, seeds: Sequence[Sequence[float]], is_claim: bool
    ) -> None:
        """Keep a control's value and the gap to it, and whether the gap is a gain."""
        values.extend([value, gap])
        if own.of not in recipes or not is_claim:  # a baseline, or the same in other words
            return
        if not value.task and value.metric in BETTER:
            title = value.metric if value.k is None else f"{value.metric}, k = {value.k}"
            prefix = f"{own.of}, " if len(recipes) > 2 else ""
            names = (own.of, prefix + label.removeprefix("the "))
            for name, one, each in zip(names, (own, value), seeds, strict=True):
                panels[title].append(Row(name, one.value, one.low, one.high, each))
        if not value.task:
            beside.append(value)
        if value.task not in CONTROLS and not_beaten(value.metric, gap):
            name = " ".join([value.metric, value.task]).strip()
            unbeaten[gap.of][name] += [str(value.k)] * (value.k is not None)

    for key in [key for key in mine if key in theirs and not _left_out(key[0])]:
        for recipe in [name for name in mine[key] if name in theirs[key]]:
            pair = mine[key][recipe], theirs[key][recipe]
            found = gap_to_control(*pair, recipe, f"{recipe} on {label}", seeds)
            seeds_of = [[one.value for one in each] for each in pair]
            judge(*found, seeds_of, pair[0][0].is_compared)
    own_kind = {(v.metric, v.of, v.task, v.k): v for v in _values(of_control)}
    for value in _values(groups):
        other = own_kind.get((value.metric, value.of, value.task, value.k))
        if other is not None and not _left_out(value.metric):
            size = value.value - other.value
            below = np.hypot(value.value - value.low, other.high - other.value)
            above = np.hypot(value.high - value.value, other.value - other.low)
            gap = replace(
                value, metric=f"{value.metric}_gap", value=size, low=size - below,
                high=size + above, method=gap_method("difference of independent values", below),
            )  # fmt: skip
            judge(value, replace(other, of=f"{other.of} on {label}"), gap, [(), ()], True)
    weak = {
        recipe: ", ".join(
            f"{name} (k = {', '.join(ks)})" if ks else name for name, ks in of.items()
        )
        for recipe, of in unbeaten.items()
    }
    counts = Counter(one.recipe for one in control.dictionaries)
    few = [name for name, n in counts.items() if n < 2]
    notes = [f"one control seed of {', '.join(few)}: a gap needs at least 2"] * bool(few)
    weak = {recipe: f"{label} in {names}" for recipe, names in weak.items()}
    figures = forest(panels, name="control")
    return Group(values=values, figures=figures, notes=notes, weak=weak, bands=spanned(beside))


def beside_random(
    dictionaries: Sequence[Dictionary], random: Sequence[Dictionary], found: Sequence[Measurement]
) -> Group:
    """Losses of dictionaries at initialization, and what those of each recipe gain on them."""
    values, notes, weak = list[Value](), list[str](), dict[str, str]()
    for recipe in dict.fromkeys(one.recipe for one in random):
        names = [{d.name for d in some if d.recipe == recipe} for some in (dictionaries, random)]
        label, worse = next(iter(names[1])).rpartition("/")[0], list[str]()
        for metric in ("l0", *BESIDE_RANDOM):
            own, theirs = ([m for m in found if m.metric == metric and m.of in x] for x in names)
            mine, value, gap = gap_to_control(own, theirs, recipe, label, {})
            if metric in BESIDE_RANDOM:
                values += [value, gap]
                worse += [metric] * not_beaten(metric, gap)
            elif abs(gap.value) > SAME_L0 * mine.value:
                notes.append(f"{label} has an L0 of {value.value:.3g}, {recipe} {mine.value:.3g}")
        if worse:
            weak[recipe] = f"the dictionary at initialization in {', '.join(worse)}"
    bands = spanned(one for one in values if one.of.startswith(RANDOM))
    return Group(values=values, notes=notes, weak=weak, bands=bands)


def _left_out(metric: str) -> bool:
    return metric.startswith(LOSSES) or metric.endswith(("_null", "_random"))


def _values(groups: Mapping[str, Group]) -> list[Value]:
    return [value for group in groups.values() for value in group.values]
