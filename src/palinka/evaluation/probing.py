"""k-sparse probing of dictionaries, beside baselines."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.figures.probing import probing as draw
from palinka.analyses.stats.probes import KS, Rule, SparseProbe, sparse_probe
from palinka.errors import InputError, checks_strings, counted, track
from palinka.evaluation.protocols import DEFAULT_KS, published
from palinka.evaluation.representations import (
    RANDOM,
    Pooling,
    Representations,
    encoders_of,
    random_dictionaries,
    read_tasks,
)
from palinka.evaluation.tasks import MATCHED, Task, find_tasks
from palinka.evaluation.values import (
    MANY_TASKS,
    Array,
    Group,
    Measurement,
    Subject,
    Value,
    value_of,
)

SHUFFLED = "shuffled_labels"
SINGLE = frozenset({"dense", "tokens_all", "length"})  # baselines without a number of columns
# What a dictionary may lack of the dense probe.
NEAR_DENSE = 0.01
OVER_HALVES = "clustered DeLong, mean of 5 halves"
METHOD = f"{OVER_HALVES}, on the log-odds scale"
LOOKUP = "random_word"
ONE = "none: the AUC is 1 in every half, which leaves no error to estimate"
# Options of the other protocols.
IGNORED = {
    "palinka": ("penalty",),
    "sae_probes": ("selection", "pooling", "items", "shuffles", "seed"),
    "saebench": ("selection", "pooling", "items", "shuffles", "seed", "penalty"),
}

Probes = dict[str, SparseProbe]


@checks_strings
def probing(
    subject: Subject, tasks: Sequence[str] = ("builtin", "controls"),
    k: int | Sequence[int] | None = None,
    protocol: Literal["palinka", "sae_probes", "saebench"] = "palinka",
    selection: Rule = "mean_difference", pooling: Pooling = "last", items: int = 2000,
    shuffles: int = 20, penalty: Literal["l1", "l2"] = "l2", seed: int = 0,
) -> Group:  # fmt: skip
    """Probe how few latents tell two labels apart, beside baselines with the same halves.

    Args:
        subject: Dictionaries of one site.
        tasks: `builtin`, `controls` or the names of single ones, CSV files with `prompt` and
            `target` (with `:value` for the positive target), `sae_probes:recommended` or
            `sae_probes:92_glue_sst2`.
        k: Numbers of latents; default 1, 2, 5, 16 and 128, or those of the protocol, as far as
            the dictionaries have as many.
        protocol: `palinka`, or for comparison with published numbers `sae_probes` or `saebench`,
            which have one split, no groups and no interval.
        selection: How latents are selected: `mean_difference`, `t`, `f` or `auc`.
        pooling: Over the tokens of a text: `last`, `mean` or `max`.
        items: Maximum number of items of a task.
        shuffles: Number of permutations of labels, divided over the tasks.
        penalty: Penalty of the protocol `sae_probes`.
        seed: Seed of items, halves and random baselines.
    """
    given, known = {**locals()}, inspect.signature(probing).parameters
    if ignored := [name for name in IGNORED[protocol] if given[name] != known[name].default]:
        fault = f"protocol {protocol} takes no {' or '.join(ignored)}"
        raise InputError(f"probing: {fault}; leave it out")
    most = min(d.latent_dim for d in subject.dictionaries)
    default = [each for each in DEFAULT_KS.get(protocol, KS) if each <= most]
    ks = tuple(sorted({k} if isinstance(k, int) else {*(k or default)}))
    if max(ks) > most:
        raise InputError(f"k is {max(ks)}, the dictionary has {most} latents; give a smaller k")
    texts, tokens, notes = find_tasks(
        subject, tasks, items if protocol == "palinka" else None, seed
    )
    encoders = encoders_of(subject.dictionaries)
    if not texts and not tokens:
        return Group(notes=[*notes, "no task is left; give more text"])
    if protocol != "palinka":
        return published(subject, texts, encoders, protocol, ks, penalty)
    encoders |= encoders_of(random_dictionaries(subject, seed))
    done, probes, shuffled = list[Task](), dict[str, Probes](), list[Array]()
    each = -(-shuffles // (len(texts) + len(tokens)))
    read = read_tasks(subject, texts, tokens, encoders, pooling)
    for task, found in track(read, "Probing tasks", len(texts) + len(tokens)):
        done.append(task)
        probes[task.name] = _probe_all(found, task, ks, selection, seed)
        first = found.latents[subject.dictionaries[0].name]
        for number in range(each):
            random = np.random.default_rng([seed, len(done), number])
            labels = _permute(task.labels, task.groups, random)
            null = sparse_probe(first, labels, task.groups, ks, selection, seed=seed)
            shuffled.append(null.auc)
    left_out = {task.name: len(task.texts) for task in texts}
    for task in done:
        if missing := left_out.get(task.name, len(task.texts)) - len(task.texts):
            notes.append(f"{task.name}: {counted(missing, 'texts')} without a token left out")
    return _summary(subject, done, probes, np.array(shuffled), ks, notes)


def _probe_all(
    found: Representations, task: Task, ks: tuple[int, ...], selection: Rule, seed: int
) -> Probes:  # fmt: skip
    """Probes of the dictionaries and of all baselines."""
    dense, tokens = found.dense, found.tokens
    directions = np.random.default_rng(seed).standard_normal((dense.shape[1], max(ks)))
    x: dict[str, tuple[NDArray[Any], Sequence[int], Rule, bool]] = {
        **{name: (latents, ks, selection, False) for name, latents in found.latents.items()},
        "units": (dense, ks, selection, False),
        "pca": (dense, ks, "first", True),
        "pca_selected": (dense, ks, selection, True),
        "random_directions": (dense @ directions, ks, "first", False),
        "tokens_k": (tokens, ks, selection, False),
        "dense": (dense, dense.shape[1:], "first", False),
        "tokens_all": (tokens, tokens.shape[1:], "first", False),
        "length": (found.length[:, None], (1,), "first", False),
    }
    return {
        name: sparse_probe(matrix, task.labels, task.groups, some, rule, pca, seed=seed)
        for name, (matrix, some, rule, pca) in x.items()
        if matrix.shape[1]
    }


def _permute(labels: NDArray[Any], groups: NDArray[Any], random: Any) -> NDArray[Any]:
    """Labels in another order of the groups, those of one group together."""
    _, group = np.unique(groups, return_inverse=True)
    place = random.permutation(group.max() + 1)
    permuted = np.empty_like(labels)
    permuted[np.argsort(group, kind="stable")] = labels[np.argsort(place[group], kind="stable")]
    return permuted


def _measure(
    name: str, tasks: Sequence[Task], probes: Mapping[str, Probes], at: int, k: int | None
) -> tuple[list[Measurement], list[Measurement]]:
    """AUC in each task, and over two tasks or more: given these, and tasks as a sample.

    Both are also of the matched tasks alone, in which a lookup of the token has an AUC of one half.
    `selectivity` is the mean less the AUC of `random_word`, which a lookup of the word finds.

    Source:
        Hewitt & Liang (2019) for selectivity.
    """
    own = [task for task in tasks if name in probes[task.name]]
    # Documents are shared by tasks, texts are not.
    units = [
        np.unique(task.groups) + (number << 32) * bool(task.texts)
        for number, task in enumerate(own, start=1)
    ]
    every, wide = np.unique(np.concatenate(units)), dict[str, Array]()
    halves = probes[own[0].name][name].influence.shape[1] // len(units[0])
    measured, values = list[Measurement](), dict[str, float]()
    for task, unit in zip(own, units, strict=True):
        probe = probes[task.name][name]
        value, influence = float(probe.auc[at]), probe.influence[at]
        certain, size = value == 1.0, len(unit)
        own_influence = np.full_like(influence, np.nan) if certain else influence
        measured.append(
            Measurement("auc", name, value, own_influence, task.unit, size, size / 2 - 1,
                        task.name, k, ONE if certain else METHOD)
        )  # fmt: skip
        values[task.name], wide[task.name] = value, np.zeros((halves, len(every)))
        wide[task.name][:, np.searchsorted(every, unit)] = influence.reshape(halves, -1)
    counted, means = [task.name for task in own if not task.is_control], list[Measurement]()
    matched = [task for task in counted if task in MATCHED]
    what = "items" if any(task.texts for task in own if not task.is_control) else "documents"
    sets = {"auc": counted, "auc_matched": matched if len(matched) < len(counted) else []}
    for metric, some in sets.items():
        if (n := len(some)) < 2:
            continue
        of = np.array([values[task] for task in some])
        mean = float(of.mean())
        total = np.asarray(np.mean([wide[task] for task in some], axis=0)).ravel()
        among, are_many = (of - mean) / np.sqrt(n * (n - 1)), n >= MANY_TASKS
        means += [
            Measurement(f"{metric}_given_tasks", name, mean, total, what, len(every), k=k,
                        method=OVER_HALVES, is_compared=not are_many),
            Measurement(metric, name, mean, among, "tasks", n, n - 1, k=k,
                        method="t over tasks", is_compared=are_many),
        ]  # fmt: skip
    if means and LOOKUP in values:
        control = replace(means[0], value=values[LOOKUP], influence=wide[LOOKUP].ravel())
        less = means[0].less(control, "selectivity")
        means.append(replace(less, method=f"paired, {OVER_HALVES}", is_compared=True))
    return measured, means


def _minus(a: Measurement, b: Measurement) -> Measurement:
    """Difference of a dictionary and a baseline, paired over items or over tasks."""
    both = (a.method, a.influence), (b.method, b.influence)
    reasons = [method for method, x in both if x is not None and np.isnan(x).any()]
    method = reasons[0] if reasons else f"paired, {a.method}"
    return replace(a.less(b, f"auc_minus_{b.of}"), method=method)


def _summary(
    subject: Subject, tasks: Sequence[Task], probes: Mapping[str, Probes], shuffled: Array,
    ks: tuple[int, ...], notes: list[str],
) -> Group:  # fmt: skip
    tasks = sorted(tasks, key=lambda task: task.is_control)
    names = list(dict.fromkeys(name for found in probes.values() for name in found))
    recipes = {recipe: [d.name for d in ones] for recipe, ones in subject.recipes.items()}
    own = [d.name for d in subject.dictionaries]
    baselines = [name for name in names if name not in own]
    many = sum(not task.is_control for task in tasks) >= MANY_TASKS
    measurements, values, whole = list[Measurement](), list[Value](), dict[Any, Measurement]()
    for name in names:
        for at, k in enumerate(ks):
            alone = name in SINGLE
            of_tasks, means = _measure(name, tasks, probes, *((0, None) if alone else (at, k)))
            # Of the mean over tasks, or of the only task.
            whole[name, k] = means[many] if means else of_tasks[0]
            if name in own:
                measurements += [*of_tasks, *means]
            elif k == ks[0] or not alone:  # those of each task are in the arrays
                values += [value_of([one], name) for one in means or of_tasks[:1]]
    for recipe, seeds in recipes.items():
        mine = [b for b in baselines if b.removeprefix(f"{RANDOM} of ") in (b, recipe)]
        near, below = np.nan, list[int]()
        for k in ks:
            gaps = {
                b: value_of([_minus(whole[name, k], whole[b, k]) for name in seeds], recipe)
                for b in mine
            }
            values += gaps.values()
            if any(gap.low == gap.low for gap in gaps.values()):
                beaten = float(sum(gap.low > 0 for gap in gaps.values()))
                how = "none: baselines above which the interval of the difference lies"
                n = {"baselines": len(gaps)}
                values.append(Value("baselines_beaten", recipe, beaten, n=n, method=how, k=k))
            if "tokens_all" in gaps and gaps["tokens_all"].value < 0:
                below.append(k)
            if np.isnan(near) and gaps["dense"].high > -NEAR_DENSE:
                near = float(k)
        if below:
            numbers = ", ".join(map(str, below))
            notes.append(f"{recipe} is below tokens_all, which needs no model, at k = {numbers}")
        if gaps["dense"].high == gaps["dense"].high:  # not of two seeds
            how = "none: the smallest k near the dense probe"
            how = f"none: > {ks[-1]}" if near != near else how
            values.append(Value("k_for_dense", recipe, near, method=how))
    for at, k in enumerate(ks if len(shuffled) else ()):
        low, high = np.quantile(shuffled[:, at], (0.025, 0.975))
        n, method = {"permutations": len(shuffled)}, "quantiles of single tasks"
        null = ("auc", SHUFFLED, float(shuffled[:, at].mean()), float(low), float(high))
        values.append(Value(*null, n, method, k=k))
    arrays: dict[str, NDArray[Any]] = {"probing_names": np.array(names), "probing_ks": np.array(ks)}
    arrays["probing_tasks"] = np.array([task.name for task in tasks])
    for what in ("auc", "accuracy", "log_loss", "error"):
        table = [
            [np.resize(getattr(probes[t.name][n], what), len(ks)) for t in tasks] for n in names
        ]
        arrays[f"probing_{what}"] = np.array(table)
    found = {r: [value_of([whole[n, k] for n in of], r) for k in ks] for r, of in recipes.items()}
    curves = {n: np.array([[v.value, v.low, v.high] for v in some]).T for n, some in found.items()}
    lines = {n: [whole[n, k].value for k in (ks[:1] if n in SINGLE else ks)] for n in baselines}
    band = None
    if len(shuffled):
        count = max(1, sum(not task.is_control for task in tasks))
        middle, spread = shuffled.mean(axis=0), 1.96 * shuffled.std(axis=0, ddof=1) / count**0.5
        band = (middle - spread, middle + spread)
    figures = draw(ks, curves, lines, band, title=f"Probes at {subject.site}")
    return Group(measurements, values, arrays, figures, notes)
