"""Simulate every p-value and interval that palinka prints where its null is true.

    python benchmarks validity

`tests/analyses/test_validity.py` holds the same simulations to what each row claims.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from palinka.analyses import (
    category_score,
    generalized_eigendecomposition,
    representational_similarity,
    unit_tuning,
)
from palinka.analyses.stats.bootstrap import document_intervals

DATA_SETS = 1000
PERMUTATIONS = 199
LEVEL = 0.05
# Claims: a rejection rate of .03 to .07 and uniform p; a rate of at most .07; nothing, since an
# assumption of the test does not hold. Of intervals: coverage of .92 to .98; at least .92; nothing.
HELD, CAUTIOUS, VIOLATED = "held", "cautious", "assumption violated"

Array = NDArray[np.float64]
Random = np.random.Generator


class Row(NamedTuple):
    """Simulated behavior of one statistic in one design."""

    statistic: str
    design: str
    claim: str
    rate: float
    uniformity: float | None = None

    def holds(self) -> bool:
        """Return whether the rates are within the row's claim."""
        is_interval = self.uniformity is None
        low, high = (0.92, 0.98) if is_interval else (0.03, 0.07)
        if self.claim == HELD:
            uniform = self.uniformity is None or self.uniformity > 1e-3
            return low <= self.rate <= high and uniform
        return self.claim == VIOLATED or (self.rate >= low if is_interval else self.rate <= high)


class Case(NamedTuple):
    """A design, the statistics to be computed in it, and what they claim."""

    statistics: Callable[[Random], dict[str, Any]]
    analysis: str
    design: str
    claims: Mapping[str, str] = MappingProxyType({})
    claim: str = HELD

    def rows(self, data_sets: int = DATA_SETS) -> list[Row]:
        """Simulate; a row for each statistic."""
        draws = [self.statistics(np.random.default_rng([7, i])) for i in range(data_sets)]
        return [self._row(name, np.array([draw[name] for draw in draws])) for name in draws[0]]

    def _row(self, name: str, found: Array) -> Row:
        row = Row(f"{self.analysis}: {name}", self.design, self.claims.get(name, self.claim), 0.0)
        if found.ndim == 2:  # of an interval: its ends, and the true value
            low, high, truth = found.T
            return row._replace(rate=float(((low <= truth) & (truth <= high)).mean()))
        # A discrete p less a random part of its step is uniform under the null.
        steps = found * (PERMUTATIONS + 1)
        if np.allclose(steps, np.rint(steps)):
            found = found - np.random.default_rng(8).random(len(found)) / (PERMUTATIONS + 1)
        rate = float((found <= LEVEL).mean())
        return row._replace(rate=rate, uniformity=float(stats.kstest(found, "uniform").pvalue))


def seed(rng: Random) -> int:
    """A seed of a random analysis."""
    return int(rng.integers(2**32))


def noise(rng: Random, items: int, units: int, kind: str = "normal") -> Array:
    """Items of mean 0 and variance 1."""
    if kind == "t5":
        return rng.standard_t(5, size=(items, units)) / np.sqrt(5 / 3)
    if kind == "lengths":  # of all units together
        return rng.normal(size=(items, units)) * np.sqrt(2 / rng.chisquare(4, size=(items, 1)))
    if kind == "shared":  # units are correlated
        return (rng.normal(size=(items, units)) + 2 * rng.normal(size=(items, 1))) / np.sqrt(5)
    if kind == "clusters":  # of five items each
        of_cluster = np.repeat(rng.normal(size=(items // 5, units)), 5, axis=0)
        return 0.8 * of_cluster + 0.6 * rng.normal(size=(items, units))
    return rng.normal(size=(items, units))


def tuning(
    test: Any, n_a: int, n_b: int, kind: str = "normal", sd: float = 1.0, common: float = 0.0
) -> Callable[[Random], dict[str, Any]]:
    """P-values of one unit, and the smallest adjusted ones of 20; B has `sd` times A's spread."""

    def statistics(rng: Random) -> dict[str, Any]:
        a, b = noise(rng, n_a, 20, kind), sd * noise(rng, n_b, 20, kind)
        if common:
            pairs = common * noise(rng, n_a, 20, "clusters" if n_a % 5 == 0 else "normal")
            a, b = a + pairs, b + pairs
        found = {"p of a unit": unit_tuning(a, b, test).p[0]}
        # The smallest of Bonferroni's is that of Holm's.
        for correction in ("holm", "benjamini_hochberg", "max_t"):
            options = {"permutations": PERMUTATIONS, "seed": seed(rng)}
            result = unit_tuning(a, b, test, correction, **options)  # type: ignore[arg-type]
            found[f"smallest p_adjusted, {correction}"] = result.p_adjusted.min()
        return found

    return statistics


def corrections(holm: str, benjamini_hochberg: str) -> dict[str, str]:
    """Claims of the smallest adjusted p-values."""
    claims = {"holm": holm, "benjamini_hochberg": benjamini_hochberg}
    return {f"smallest p_adjusted, {name}": claim for name, claim in claims.items()}


# Holm's is uniform in its tail alone; both are cautious where units are correlated or tails heavy.
# With 8 items against 30, Welch's approximation is off in the far tail.
HOLM, CORRELATED = corrections(CAUTIOUS, HELD), corrections(CAUTIOUS, CAUTIOUS)
FAR_TAIL = corrections(VIOLATED, VIOLATED)


def ged(
    n_a: int,
    n_b: int,
    kind: str = "normal",
    shift: float = 0.0,
    correlation: float = 0.0,
    pairs: bool = False,
    d: int = 20,
) -> Callable[[Random], dict[str, Any]]:
    """Both p-values, of conditions with equal covariances."""

    def statistics(rng: Random) -> dict[str, Any]:
        a, b = noise(rng, n_a, d, kind) + shift, noise(rng, n_b, d, kind)
        if correlation:
            common = np.sqrt(correlation) * noise(rng, n_a, d)
            a, b = (common + np.sqrt(1 - correlation) * x for x in (a, b))
        # The held-out check, which has no p-value, takes most of the time.
        heldout_ratio = "palinka.analyses.generalized_eigendecomposition.heldout_ratio"
        with patch(heldout_ratio, return_value=(None, None)):
            result = generalized_eigendecomposition(
                a, b, permutations=PERMUTATIONS, pairs=pairs, seed=seed(rng)
            )
        return {"p_value_a": result.p_value_a, "p_value_b": result.p_value_b}

    return statistics


def sparse_series(rng: Random, tokens: int, rho: float) -> Array:
    """Sparse activations of 24 latents, alike at neighboring tokens."""
    series = rng.normal(size=(tokens, 24))
    for token in range(1, tokens):
        series[token] = rho * series[token - 1] + np.sqrt(1 - rho**2) * series[token]
    return np.maximum(np.exp(series) - 0.7, 0)


def independent_tokens(rng: Random) -> tuple[Array, Any, dict[str, Any]]:
    """Tokens and labels at random."""
    return sparse_series(rng, 200, 0.0), rng.permutation(200) < 20, {}


def category_in_one_run(rng: Random) -> tuple[Array, Any, dict[str, Any]]:
    """All words of the category in one run, which may reach around the end."""
    targets = np.roll(np.arange(200) < 20, rng.integers(200))
    return sparse_series(rng, 200, 0.9), targets, {"words": np.arange(200)}


def scattered_words(rng: Random) -> tuple[Array, Any, dict[str, Any]]:
    """Each token is a different word."""
    return sparse_series(rng, 200, 0.9), rng.permutation(200) < 20, {"words": np.arange(200)}


def recurring_words(rng: Random) -> tuple[Array, Any, dict[str, Any]]:
    """Latents follow the word, and frequent words are many tokens."""
    shares = 1 / np.arange(1, 61)
    words = np.unique(rng.choice(60, 300, p=shares / shares.sum()), return_inverse=True)[1]
    of_word = rng.normal(size=(60, 24))[words]
    latents = np.maximum(of_word + 0.2 * rng.normal(size=of_word.shape) - 0.3, 0)
    category = rng.choice(words.max() + 1, 10, replace=False)
    return latents, np.isin(words, category), {"words": words}


def runs_in_documents(rng: Random) -> tuple[Array, Any, dict[str, Any]]:
    """A run of targets in each of twelve documents."""
    latents = [sparse_series(rng, 40, 0.8) + rng.exponential(size=24) for _ in range(12)]
    targets = [np.roll(np.arange(40) < 6, rng.integers(40)) for _ in range(12)]
    documents = np.repeat(np.arange(12), 40)
    return np.concatenate(latents), np.concatenate(targets), {"documents": documents}


def drifting_text(rng: Random) -> tuple[Array, Any, dict[str, Any]]:
    """Activations grow along the text, and the category stands at its end."""
    drift = 1 + 3 * (np.arange(200) > 150)[:, None]
    return sparse_series(rng, 200, 0.5) * drift, np.arange(200) >= 180, {}


def category(design: Callable[[Random], Any]) -> Callable[[Random], dict[str, Any]]:
    """P-values of the latents with the highest score and the highest AUC."""

    def statistics(rng: Random) -> dict[str, Any]:
        latents, targets, given = design(rng)
        result = category_score(
            latents, targets, permutations=PERMUTATIONS, seed=seed(rng), **given
        )
        return {name: result.scalars()[name] for name in ("best_p_value", "best_auc_p_value")}

    return statistics


def words(rng: Random, items: int, shared: float, kind: str) -> tuple[Array, Array]:
    """Vectors of words at two sites, which have `shared` times the noise in common."""
    hidden = shared * noise(rng, items, 4, kind)
    projections = np.random.default_rng(9).normal(size=(2, 4, 12))
    x, y = (hidden @ to_site + noise(rng, items, 12, kind) for to_site in projections)
    if kind == "hubs":  # words differ in how alike they are to all others
        x, y = (site + rng.exponential(size=(items, 1)) for site in (x, y))
    return x, y


def mantel(
    items: int, compare: Any = "pearson", kind: str = "normal", grouped: bool = False
) -> Callable[[Random], dict[str, Any]]:
    """P-value of two unrelated sites."""

    def statistics(rng: Random) -> dict[str, Any]:
        x, y = words(rng, items, 0.0, kind)
        groups = np.arange(items) % 3 if grouped else None
        if groups is not None:
            x += 2 * rng.normal(size=(3, 12))[groups]
        result = representational_similarity(
            x, y, groups, compare, permutations=PERMUTATIONS, seed=seed(rng)
        )
        return {f"p_value, {compare}": result.p_value}

    return statistics


def score_interval(
    items: int, compare: Any = "pearson", kind: str = "normal", shared: float = 1.0
) -> Callable[[Random], dict[str, Any]]:
    """Interval of a score, and the score of all words."""

    @cache
    def truth() -> float:
        many = [words(np.random.default_rng([10, i]), 400, shared, kind) for i in range(10)]
        every = [representational_similarity(x, y, compare=compare).score for x, y in many]
        return float(np.mean(every))

    def statistics(rng: Random) -> dict[str, Any]:
        x, y = words(rng, items, shared, kind)
        result = representational_similarity(
            x, y, compare=compare, permutations=PERMUTATIONS, seed=seed(rng)
        )
        assert result.score_interval is not None
        return {f"score_interval, {compare}": (*result.score_interval, truth())}

    return statistics


def documents(
    n: int, lengths: float = 1.0, kind: str = "normal"
) -> Callable[[Random], dict[str, Any]]:
    """Intervals of a mean loss per token, and of loss recovered; log lengths vary by `lengths`."""

    def sums(rng: Random, n: int) -> Array:
        z = rng.normal(size=n)
        tokens = np.ceil(100 * np.exp(lengths * z))
        effect = {
            "normal": lambda: rng.normal(size=n),
            "t3": lambda: rng.standard_t(3, size=n) / np.sqrt(3),
            "gamma": lambda: (rng.gamma(2, size=n) - 2) / np.sqrt(2),
            "exponential": lambda: rng.exponential(size=n) - 1,
            "longer is better": lambda: 0.8 * rng.normal(size=n) - 0.6 * z,
        }[kind]()
        clean = 3 + 0.5 * effect + 1.5 * rng.normal(size=n) / np.sqrt(tokens)
        rise = 0.1 * np.exp(0.4 * np.clip(effect, -4, 4))
        ablated = 2 + 0.4 * np.clip(rng.normal(size=n), -3, 3)
        return tokens[:, None] * np.stack([np.ones(n), clean, rise, ablated], axis=1)

    ratios = {"mean": ([0, 1, 0, 0], [1, 0, 0, 0]), "recovered": ([0, 0, -1, 1], [0, 0, 0, 1])}

    @cache
    def truth() -> dict[str, float]:
        total = sums(np.random.default_rng(11), 2_000_000).sum(axis=0)
        return {name: total @ above / (total @ below) for name, (above, below) in ratios.items()}

    def statistics(rng: Random) -> dict[str, Any]:
        found = document_intervals(sums(rng, n), ratios)
        return {name: (found[name].low, found[name].high, truth()[name]) for name in ratios}

    return statistics


TUNING, GED, CATEGORY = "unit_tuning", "generalized_eigendecomposition", "category_score"
RSA, DOCUMENTS = "representational_similarity", "LanguageModelMetrics"
CASES = [
    Case(tuning("paired", 10, 10), f"{TUNING} paired", "10 independent items", HOLM),
    Case(tuning("paired", 10, 10, common=4.0), f"{TUNING} paired",
         "10 matched pairs, r = .94", HOLM),
    Case(tuning("paired", 20, 20, common=1.0), f"{TUNING} paired",
         "20 pairs in clusters of 5 that both conditions share", HOLM),
    Case(tuning("paired", 12, 12, "t5", 3.0), f"{TUNING} paired",
         "12 heavy-tailed items, sd 1 : 3", HOLM),
    Case(tuning("paired", 12, 12, "shared"), f"{TUNING} paired",
         "12 items, correlated units", CORRELATED),
    Case(tuning("paired", 20, 20, "clusters"), f"{TUNING} paired",
         "20 differences in clusters of 5", claim=VIOLATED),
    Case(tuning("welch", 20, 20), f"{TUNING} welch", "20 and 20 independent items", HOLM),
    Case(tuning("welch", 20, 20, sd=3.0), f"{TUNING} welch", "20 and 20, sd 1 : 3", HOLM),
    Case(tuning("welch", 8, 30), f"{TUNING} welch", "8 and 30, sd 1 : 1", FAR_TAIL),
    Case(tuning("welch", 8, 30, sd=3.0), f"{TUNING} welch", "8 and 30, sd 1 : 3", HOLM),
    Case(tuning("welch", 30, 8, sd=3.0), f"{TUNING} welch", "30 and 8, sd 1 : 3", FAR_TAIL),
    Case(tuning("welch", 30, 8, "shared", 3.0), f"{TUNING} welch",
         "30 and 8, sd 1 : 3, correlated units", CORRELATED),
    Case(tuning("welch", 30, 12, "t5", 3.0), f"{TUNING} welch",
         "30 and 12 heavy-tailed items, sd 1 : 3", CORRELATED),
    Case(tuning("welch", 12, 12, common=4.0), f"{TUNING} welch",
         "12 matched pairs, r = .94", claim=CAUTIOUS),
    Case(tuning("welch", 20, 20, "clusters"), f"{TUNING} welch",
         "20 and 20 in clusters of 5", claim=VIOLATED),
    Case(ged(8, 8), GED, "8 and 8 independent items"),
    Case(ged(12, 30), GED, "12 and 30 independent items"),
    Case(ged(40, 40, shift=20.0), GED, "40 and 40, means 20 sd apart"),
    Case(ged(20, 20, "t5"), GED, "20 and 20, heavy-tailed dimensions"),
    Case(ged(8, 8, correlation=0.95, pairs=True), GED, "8 matched pairs, r = .95, pairs"),
    Case(ged(20, 20, correlation=0.95, pairs=True, d=100), GED,
         "20 matched pairs of 100 dimensions, r = .95, pairs"),
    Case(ged(40, 40, correlation=0.95), GED, "40 matched pairs, not given as pairs",
         claim=CAUTIOUS),
    Case(ged(20, 20, "lengths"), GED, "20 and 20 of multivariate t, 4 degrees of freedom",
         claim=VIOLATED),
    Case(ged(20, 20, "clusters"), GED, "20 and 20 in clusters of 5", claim=VIOLATED),
    Case(category(independent_tokens), CATEGORY, "independent tokens, shifts"),
    Case(category(category_in_one_run), CATEGORY,
         "correlated tokens, all words of the category in one run, shifts"),
    Case(category(runs_in_documents), CATEGORY, "12 documents, each with a run, shifts"),
    Case(category(scattered_words), CATEGORY, "correlated tokens, scattered words exchanged"),
    Case(category(recurring_words), CATEGORY, "recurring words exchanged"),
    Case(category(drifting_text), CATEGORY, "activations that drift along the text",
         claim=VIOLATED),
    *(Case(mantel(n, compare), RSA, f"{n} independent words")
      for n, compare in ((16, "pearson"), (16, "spearman"), (8, "kendall"), (16, "cka"))),
    Case(mantel(16, kind="hubs"), RSA, "16 words, some alike to all others"),
    Case(mantel(15, kind="normal", grouped=True), RSA, "15 words, groups at one site"),
    Case(mantel(15, kind="clusters"), RSA, "15 words in clusters of 5 at both sites",
         claim=VIOLATED),
    *(Case(score_interval(n, compare), RSA, f"{n} words that the sites arrange alike")
      for n, compare in ((16, "pearson"), (30, "pearson"), (30, "spearman"), (16, "kendall"))),
    Case(score_interval(30, shared=0.0), RSA, "30 words, unrelated sites", claim=CAUTIOUS),
    Case(score_interval(30, kind="clusters"), RSA, "30 words in clusters of 5", claim=VIOLATED),
    *(Case(documents(n), DOCUMENTS, f"{n} documents of log-normal length")
      for n in (8, 10, 15, 30, 100)),
    Case(documents(8, 0.3), DOCUMENTS, "8 documents of similar length"),
    Case(documents(10, 1.5), DOCUMENTS, "10 documents of very unequal length"),
    Case(documents(15, 1.0, "t3"), DOCUMENTS, "15 documents, heavy tails"),
    Case(documents(8, 1.0, "gamma"), DOCUMENTS, "8 documents, skewed losses"),
    Case(documents(15, 1.0, "longer is better"), DOCUMENTS, "15 documents, longer ones better"),
    Case(documents(8, 0.3, "exponential"), DOCUMENTS, "8 documents of exponential losses",
         claim=VIOLATED),
]  # fmt: skip


def main() -> None:
    """Simulate all cases and write the table."""
    from harness import publish

    rows = [row for case in CASES for row in case.rows()]
    tables = []
    for heading, chosen in (
        ("| P-values | design | p ≤ .05 | uniform, p | claim |\n|---|---|---:|---:|---|",
         [row for row in rows if row.uniformity is not None]),
        ("| 95 % intervals | design | covers | claim |\n|---|---|---:|---|",
         [row for row in rows if row.uniformity is None]),
    ):  # fmt: skip
        lines = [heading]
        for row in chosen:
            claim = row.claim if row.holds() else f"**not {row.claim}**"
            uniform = [] if row.uniformity is None else [f"{row.uniformity:.2g}"]
            cells = [row.statistic, row.design, f"{row.rate:.3f}", *uniform, claim]
            lines.append(f"| {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    publish(
        "validity",
        "Validity of p-values and intervals",
        "\n\n".join(tables),
        f"{DATA_SETS:,} data sets each in which nothing is there to be found; permutation tests "
        f"take {PERMUTATIONS} draws. *Held*: .03 to .07 of the p-values are at most .05, and "
        "Kolmogorov and Smirnov's test of their uniformity has p > .001; .92 to .98 of the "
        "intervals cover. *Cautious*: no more than .07, no less than .92. *Assumption violated*: "
        "what the test takes for granted, and its documentation says so, does not hold here.",
    )


if __name__ == "__main__":
    main()
