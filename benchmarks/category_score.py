"""Time category scores and tests of single units against plain loops.

    python benchmarks/category_score.py

The plain side is the specification, latent by latent and shift by shift, in NumPy and SciPy.
"""

import numpy as np
from scipy import stats

from harness import Case, Rival, report
from palinka.analyses import category_score, unit_tuning

TOKENS, LATENTS, TARGETS = 209, 6144, 20
# Both sides do as many: the plain loops would take minutes for the usual thousand.
PERMUTATIONS = 50


def passage() -> tuple[np.ndarray, np.ndarray]:
    """Latents of which one in six is active at a token, and a category."""
    random = np.random.default_rng(0)
    latents = random.exponential(size=(TOKENS, LATENTS)).astype(np.float32)
    latents[random.random(latents.shape) > 1 / 6] = 0.0
    targets = np.zeros(TOKENS, dtype=bool)
    targets[random.choice(TOKENS, TARGETS, replace=False)] = True
    return latents, targets


def plain_score(latents: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The score, latent by latent."""
    scores = np.zeros(latents.shape[1])
    for latent in range(latents.shape[1]):
        values = latents[:, latent].astype(np.float64)
        inside, outside = values[targets], values[~targets]
        if inside.sum() > 0 and outside.sum() > 0:
            scores[latent] = inside[inside != 0].mean() / outside[outside != 0].mean()
    return scores


def plain_auc(latents: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The AUC, latent by latent, from SciPy's Mann–Whitney statistic."""
    pairs = targets.sum() * (~targets).sum()
    return np.array(
        [
            stats.mannwhitneyu(column[targets], column[~targets], method="asymptotic").statistic
            for column in latents.T.astype(np.float64)
        ]
    ) / float(pairs)


def shifted(targets: np.ndarray, n: int) -> np.ndarray:
    """As the analysis shifts them."""
    shifts = np.random.default_rng(0).integers(0, [len(targets)], size=(n, 1))
    return np.stack([np.roll(targets, shift) for shift in shifts[:, 0]])


def agree(expected: np.ndarray, result: np.ndarray) -> str:
    """The largest difference."""
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)
    return f"{np.abs(result - expected).max():.1e} at most"


def main() -> None:
    """Measure and report."""
    latents, targets = passage()
    masks = shifted(targets, PERMUTATIONS)

    def plain_p() -> np.ndarray:
        null = np.array([plain_score(latents, mask).max() for mask in masks])
        score = plain_score(latents, targets)
        return (1 + (null[:, None] >= score * (1 - 1e-10)).sum(axis=0)) / (len(null) + 1)

    random = np.random.default_rng(1)
    differences = random.normal(size=(100, 3072))
    signs = np.where(np.random.default_rng(0).random((PERMUTATIONS, 100)) < 0.5, -1.0, 1.0)

    def plain_max_t() -> np.ndarray:
        observed = np.abs(stats.ttest_1samp(differences, 0).statistic)
        null = np.array(
            [np.abs(stats.ttest_1samp(s[:, None] * differences, 0).statistic).max() for s in signs]
        )
        return (1 + (null[:, None] >= observed * (1 - 1e-10)).sum(axis=0)) / (len(null) + 1)

    def plain_t() -> np.ndarray:
        return np.array([stats.ttest_1samp(unit, 0).statistic for unit in differences.T])

    zeros = np.zeros_like(differences)
    report(
        "category_score",
        "Category score and unit tuning",
        [
            Case(
                f"score, {TOKENS} tokens, {LATENTS:,} latents",
                ours=lambda: category_score(latents, targets).score,
                rivals=[
                    Rival(
                        "plain",
                        lambda: plain_score(latents, targets),
                        check=agree,
                        at_least=50,
                        warm_up=False,
                    )
                ],
                rounds=9,
                repeats=5,
            ),
            Case(
                "AUC, the same",
                ours=lambda: category_score(latents, targets, detector=True).auc,
                rivals=[
                    Rival("plain", lambda: plain_auc(latents, targets), check=agree, warm_up=False)
                ],
                rounds=3,
            ),
            Case(
                f"p and AUC, the same, {PERMUTATIONS} shifts",
                ours=lambda: category_score(latents, targets, permutations=PERMUTATIONS).p_value,
                rivals=[Rival("plain", plain_p, check=agree, warm_up=False)],
                rounds=2,
            ),
            Case(
                "paired t, 100 items, 3,072 units",
                ours=lambda: unit_tuning(zeros, differences).t,
                rivals=[Rival("plain", plain_t, check=agree, warm_up=False)],
                rounds=3,
                repeats=5,
            ),
            Case(
                f"max-t, the same, {PERMUTATIONS} sign-flips",
                ours=lambda: (
                    unit_tuning(
                        zeros, differences, correction="max_t", permutations=PERMUTATIONS
                    ).p_adjusted
                ),
                rivals=[Rival("plain", plain_max_t, check=agree, warm_up=False)],
                rounds=3,
                repeats=5,
            ),
        ],
        remarks="The plain side goes unit by unit (scores, AUC, t), shift by shift (p, without "
        "that of the AUC, which ours includes) or flip by flip (max-t).",
    )


if __name__ == "__main__":
    main()
