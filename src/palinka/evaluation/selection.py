"""Latents that are associated with the label of a task, with a bound on false discoveries."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.stats import knockoffs as stats
from palinka.analyses.stats.comparison import adjusted_p_values
from palinka.errors import checks_strings, counted, track
from palinka.evaluation.representations import Pooling, encoders_of, read_tasks
from palinka.evaluation.tasks import find_tasks
from palinka.evaluation.values import Group, Subject, Value

MIN_ROWS = 20  # of each label
MOST_NAMED = 20
Test = Literal["ranks", "frequency"]
Chosen = dict[str, NDArray[np.int64]]  # numbers of latents
TITLES = {"bh": "BH", "by": "BY", "knockoffs": "knockoffs"}
MEANING = (
    "selection: by BH and BY latents are associated with the label by themselves (marginal); by "
    "knockoffs they add to what all other latents tell of it (conditional)"
)


@checks_strings
def selection(
    subject: Subject, tasks: Sequence[str] = ("builtin",), q: float = 0.1, draws: int = 31,
    simulations: int = 200, statistic: stats.Statistic = "l2", test: Test = "ranks",
    pooling: Pooling = "last", items: int = 2000, seed: int = 0,
) -> Group:  # fmt: skip
    """Select the latents that are associated with the label of each task.

    Rows must be independent: of a document one item is drawn. Latents that are active on fewer
    than 10 of them are left out. `selected_bh` and `selected_by` count latents by Mann-Whitney
    tests at a false discovery rate of `q`, under positive and under any dependence;
    `selected_knockoffs` those that tell what no other does, if a simulation finds them valid.

    Two corpora are compared as the texts of a CSV file, labelled by their corpus, with `pooling`
    `max` and `test` `frequency`: in how many documents more of one is a latent active?

    Args:
        subject: Dictionaries of one site.
        tasks: As of `probing`.
        q: Bound on the share of false ones among the selected.
        draws: Number of draws of knockoffs.
        simulations: Number of simulated labels that check the knockoffs.
        statistic: Penalty of the probes of knockoffs.
        test: Compares `ranks` of latents (Mann-Whitney), or the `frequency` of active ones by a
            test of two proportions, with intervals (Newcombe) in the arrays.
        pooling: Over the tokens of a text: `last`, `mean` or `max`.
        items: Maximum number of items of a task.
        seed: Seed of items and draws.
    """
    texts, tokens, notes = find_tasks(subject, tasks, items, seed)
    encoders = encoders_of(subject.dictionaries)
    values, arrays = list[Value](), dict[str, NDArray[Any]]()
    read = read_tasks(subject, texts, tokens, encoders, pooling)
    for task, found in track(read, "Selecting latents", len(texts) + len(tokens)):
        order = np.random.default_rng(seed).permutation(len(task.labels))
        rows = order[np.unique(task.groups[order], return_index=True)[1]]
        y = task.labels[rows]
        if (fewer := min(y.sum(), (~y).sum())) < MIN_ROWS:
            given = f"{counted(fewer, task.unit)} of a label, expected at least {MIN_ROWS}"
            notes.append(f"{task.name} left out of selection: {given}")
            continue
        for name, latents in found.latents.items():
            own, what = latents[rows], f"{name}, {task.name}"
            tested, p = stats.candidates(own, own.shape[1]), np.full(own.shape[1], np.nan)
            if not len(tested):
                notes.append(f"{what}: no latent is active on 10 of {len(y)} rows")
                continue
            if test == "frequency":
                *often, of_each = stats.compare_frequencies(own > 0, y)
                arrays[f"selection_frequency/{name}/{task.name}"] = np.stack(often)
                p[tested] = of_each[tested]
            else:
                p[tested] = stats.mann_whitney(own[:, tested], y)
            known = stats.knockoffs(own, y, q, draws, seed, simulations, statistic)
            rejected = adjusted_p_values(p[tested], "benjamini_hochberg") <= q
            chosen = {"bh": tested[rejected], "by": tested[stats.benjamini_yekutieli(p[tested], q)]}
            chosen["knockoffs"] = known.chosen
            arrays[f"selection_p/{name}/{task.name}"] = p
            masks = [np.isin(np.arange(len(p)), each) for each in chosen.values()]
            arrays[f"selection/{name}/{task.name}"] = np.stack(masks)
            for method, numbers in chosen.items():
                count, how = float(len(numbers)), f"none: selected at an FDR of {q:g}"
                if method == "knockoffs" and not known.valid:
                    count, how = np.nan, "none: knockoffs are not valid for these latents"
                n, metric = {task.unit: len(y)}, f"selected_{method}"
                values.append(Value(metric, name, count, n=n, method=how, task=task.name))
            notes.append(_line(what, chosen, known.valid))
            notes += [f"{what}: {note}" for note in known.notes]
    return Group((), values, arrays, notes=[*([MEANING] if values else []), *notes])


def _line(what: str, chosen: Chosen, valid: bool) -> str:
    counts = ", ".join(f"{len(some)} by {TITLES[name]}" for name, some in chosen.items())
    method = "knockoffs" if valid and len(chosen["knockoffs"]) else "by"
    named = chosen[method]
    more = " …" if len(named) > MOST_NAMED else ""
    listed = ", ".join(map(str, named[:MOST_NAMED].tolist())) or "none"
    return f"{what}: latents selected: {counts}; those by {TITLES[method]}: {listed}{more}"
