"""Time logistic probes along a grid of penalties against those of sae-probes.

    pip install sae-probes --no-deps
    pip install xgboost-cpu --no-deps
    python benchmarks/probing.py

Of sae-probes one file is loaded, since the package reads all of its data when it is imported.
"""

import sys
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import Case, Rival, report
from palinka.evaluation.protocols import DEFAULT_KS, best_regression, select

ROWS, LATENTS, KS = 1024, 2048, (1, 16, 64, 128)


def peer() -> Any:
    """`find_best_reg` of sae-probes, or None."""
    found = find_spec("sae_probes")
    if found is None or not find_spec("xgboost"):
        return None
    file = Path((found.submodule_search_locations or [""])[0]) / "utils_training.py"
    spec = spec_from_file_location("peer_training", file)
    module = module_from_spec(spec)
    sys.modules["peer_training"] = module  # where its dataclass looks for types
    spec.loader.exec_module(module)
    return module.find_best_reg


def latents(columns: int, dense: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Latents of twice `ROWS` rows, of which a third are related to the label."""
    random = np.random.default_rng(0)
    y = random.permutation(np.arange(2 * ROWS) % 2 == 0)
    x = random.standard_normal((2 * ROWS, columns))
    if not dense:
        x = np.maximum(x - 1.0, 0.0) * random.lognormal(size=columns)
    x += y[:, None] * random.random(x.shape) * (np.arange(columns) % 3 == 0)
    return x.astype(np.float32), y


def ours(x: np.ndarray, y: np.ndarray, ks: tuple[int, ...]) -> list[dict[str, float]]:
    """Scores of probes of the first columns by sae-probes' selection."""
    order = select(x[:ROWS], y[:ROWS], normalize=True)
    found = []
    for k in ks:
        own = x.take(order[:k], axis=1).astype(np.float64)
        found.append(best_regression(own[:ROWS], y[:ROWS], own[ROWS:], y[ROWS:]))
    return found


def theirs(find: Any, x: np.ndarray, y: np.ndarray, ks: tuple[int, ...]) -> list[Any]:
    """The same, with the selection of `get_sorted_indices` of sae-probes transcribed."""
    train, label = torch.from_numpy(x[:ROWS]), torch.from_numpy(y[:ROWS])
    means = train.abs().sum(dim=0) / ((train != 0).sum(dim=0) + 1e-6)
    scaled = train / (means + 1e-6)
    difference = scaled[label].mean(dim=0) - scaled[~label].mean(dim=0)
    order, right = difference.abs().argsort(descending=True).numpy(), y.astype(int)
    found = []
    for k in ks:
        own = x.take(order[:k], axis=1).astype(np.float64)
        found.append(find(own[:ROWS], right[:ROWS], own[ROWS:], right[ROWS:], seed=42))
    return found


def check(their: list[Any], own: list[dict[str, float]]) -> str:
    """Penalties that are the same, and the largest difference of AUCs."""
    pairs = [*zip(their, own, strict=True)]
    apart = max(abs(t.metrics.test_auc - o["test_auc"]) for t, o in pairs)
    same = sum(o["C"] == t.classifier.C for t, o in pairs)
    assert apart < 2e-3
    return f"same C in {same} of {len(pairs)}, AUC {apart:.0e} apart"


def main() -> None:
    """Measure and report."""
    find, cases = peer(), []
    settings = [
        (f"{kind}, k = {k}", latents(k, dense), (k,), 10.0)
        for kind, dense in (("sparse latents", False), ("dense columns", True))
        for k in KS
    ]
    ks = DEFAULT_KS["sae_probes"]
    title = f"a task of {LATENTS:,} latents, k = 1, 2, 4 … {ks[-1]}, with the selection"
    settings.append((title, latents(LATENTS), ks, 3.0))
    for name, data, some, least in settings:
        rivals = []
        if find:
            rivals = [Rival("sae-probes", partial(theirs, find, *data, some), least, None, check)]
        missing = {} if find else {"sae-probes": "not installed, or xgboost is not"}
        cases.append(Case(name, partial(ours, *data, some), rivals, missing, rounds=3))
    remarks = (
        f"{ROWS:,} rows for training and as many for test; 10 penalties, that of the best AUC in "
        "100 rows of validation, and a fit of all. Ours converge to 6 digits, those of sae-probes "
        "stop at a gradient of 1e-4."
    )
    report("probing", "Sparse probes along a grid of penalties", cases, remarks)


if __name__ == "__main__":
    main()
