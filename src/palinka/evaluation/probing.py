"""k-sparse probing of dictionaries, beside baselines."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.figures.probing import probing as draw
from palinka.analyses.stats.probes import KS, Rule, SparseProbe, sparse_probe
from palinka.errors import InputError, track
from palinka.evaluation.protocols import DEFAULT_KS, published
from palinka.evaluation.representations import (
    Pooling,
    Representations,
    encoders_of,
    find_tasks,
    random_dictionaries,
    read_tasks,
)
from palinka.evaluation.tasks import Task
from palinka.evaluation.values import Array, Group, Measurement, Subject, Value, value_of

SHUFFLED = "shuffled_labels"
SINGLE = frozenset({"dense", "tokens_all", "length"})  # baselines without a number of columns
# Tasks from which they are taken as a sample of tasks in comparisons.
MANY_TASKS = 8
# What a dictionary may lack of the dense probe.
NEAR_DENSE = 0.01
METHOD = "clustered DeLong, mean of 5 halves"

Probes = dict[str, SparseProbe]


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
            notes.append(f"{task.name}: {missing} texts without a token left out")
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
) -> list[Measurement]:
    """AUC in each task, and over tasks: these tasks, and tasks as a sample."""
    # Controls first: the last task stands for the mean over tasks where there is none.
    own = sorted((t for t in tasks if name in probes[t.name]), key=lambda task: not task.is_control)
    units = [np.unique(task.groups) for task in own]
    documents = np.unique(
        np.concatenate([[], *(u for u, t in zip(units, own, strict=True) if not t.texts)])
    )
    sizes = [len(u) if task.texts else 0 for u, task in zip(units, own, strict=True)]
    starts = list(accumulate(sizes, initial=len(documents)))[:-1]
    halves = probes[own[0].name][name].influence.shape[1] // len(units[0])
    total, measured, values = np.zeros((halves, len(documents) + sum(sizes))), [], []
    counted = [task for task in own if not task.is_control]
    for task, start, unit in zip(own, starts, units, strict=True):
        probe = probes[task.name][name]
        value, influence = float(probe.auc[at]), probe.influence[at]
        what = (task.unit, len(unit))
        measured.append(
            Measurement("auc", name, value, influence, *what, task=task.name, k=k, method=METHOD)
        )
        if not task.is_control:
            values.append(value)
            columns = np.arange(len(unit)) + start
            if not task.texts:
                columns = np.searchsorted(documents, unit)
            total[:, columns] += influence.reshape(halves, -1) / len(counted)
    n, mean = len(values), float(np.mean(values)) if values else np.nan
    if n > 1:
        among = (np.array(values) - mean) / np.sqrt(n * (n - 1))
        what = ("items" if any(task.texts for task in counted) else "documents", total.shape[1])
        given = Measurement("auc_given_tasks", name, mean, total.ravel(), *what, k=k, method=METHOD)
        sample = Measurement(
            "auc", name, mean, among, "tasks", n, n - 1, k=k, method="t over tasks"
        )
        measured += [given, sample]
    return measured


def _minus(a: Measurement, b: Measurement) -> Measurement:
    assert a.influence is not None
    assert b.influence is not None
    what = (a.value - b.value, a.influence - b.influence, a.unit, a.count, a.freedom)
    return Measurement(f"auc_minus_{b.of}", a.of, *what, a.task, a.k, a.method)


def _summary(
    subject: Subject, tasks: Sequence[Task], probes: Mapping[str, Probes], shuffled: Array,
    ks: tuple[int, ...], notes: list[str],
) -> Group:  # fmt: skip
    names = list(dict.fromkeys(name for found in probes.values() for name in found))
    measured: dict[tuple[str, int], list[Measurement]] = {}
    single = [name for name in names if name in SINGLE]
    for name in names:
        for at, k in enumerate(ks):
            one = (name, k, 0, None) if name in single else (name, k, at, k)
            measured[name, k] = _measure(name, tasks, probes, one[2], one[3])
    own = [d.name for d in subject.dictionaries]
    others = [name for name in names if name not in own]
    many = sum(not task.is_control for task in tasks) >= MANY_TASKS
    # Of the mean over tasks, or of the only task.
    whole = {key: found[-1 if many or found[-1].task else -2] for key, found in measured.items()}
    values = [
        value_of([one], name)
        for (name, k), found in measured.items()
        if name in others and (name not in single or k == ks[0])
        for one in found[-2:]  # over tasks; those of each task are in the arrays
    ]
    for name in own:
        near = np.nan
        for k in ks:
            gaps = {
                other: value_of([_minus(whole[name, k], whole[other, k])], name) for other in others
            }
            values += gaps.values()
            beaten = [other for other, gap in gaps.items() if gap.low > 0]
            rest = ", ".join(other for other in others if other not in beaten)
            line = f"{name} with k = {k} is above {len(beaten)} of {len(others)} baselines"
            notes.append(line + (f", not {rest}" if rest else ""))
            if "tokens_all" in gaps and gaps["tokens_all"].value < 0:
                notes.append(f"{name} with k = {k} is below tokens_all, which needs no model")
            if np.isnan(near) and gaps["dense"].high > -NEAR_DENSE:
                near = float(k)
        method = f"none: the smallest k near the dense probe, or NaN for more than {ks[-1]}"
        values.append(Value("k_for_dense", name, near, np.nan, np.nan, (), {}, method))
    for at, k in enumerate(ks if len(shuffled) else ()):
        low, high = np.quantile(shuffled[:, at], (0.025, 0.975))
        n, method = {"permutations": len(shuffled)}, "quantiles of single tasks"
        null = ("auc", SHUFFLED, float(shuffled[:, at].mean()), float(low), float(high))
        values.append(Value(*null, ("permutations",), n, method, k=k))
    measurements = [one for name in own for k in ks for one in measured[name, k]]
    arrays: dict[str, NDArray[Any]] = {"probing_names": np.array(names), "probing_ks": np.array(ks)}
    arrays["probing_tasks"] = np.array([task.name for task in tasks])
    for what in ("auc", "accuracy", "log_loss", "error"):
        table = [
            [np.resize(getattr(probes[t.name][n], what), len(ks)) for t in tasks] for n in names
        ]
        arrays[f"probing_{what}"] = np.array(table)
    found = {name: [value_of([whole[name, k]], name) for k in ks] for name in own}
    curves = {n: np.array([[v.value, v.low, v.high] for v in some]).T for n, some in found.items()}
    lines = {n: [whole[n, k].value for k in (ks[:1] if n in single else ks)] for n in others}
    band = None
    if len(shuffled):
        count = max(1, sum(not task.is_control for task in tasks))
        middle, spread = shuffled.mean(axis=0), 1.96 * shuffled.std(axis=0, ddof=1) / count**0.5
        band = (middle - spread, middle + spread)
    figures = draw(ks, curves, lines, band, title=f"Probes at {subject.site}")
    return Group(measurements, values, arrays, figures, notes)
