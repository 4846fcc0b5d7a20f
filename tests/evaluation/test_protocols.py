"""Published protocols against sae-probes, where it is installed, and plain transcriptions."""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from palinka.errors import InputError
from palinka.evaluation.protocols import best_regression, select, split_indices

HAS_PEER = bool(find_spec("sae_probes") and find_spec("xgboost"))
needs_peer = pytest.mark.skipif(not HAS_PEER, reason="needs sae-probes and xgboost")


def peer(file: str, *names: str) -> list[Any]:
    """Functions of a file of sae-probes, without its package, which reads all its data."""
    (folder,) = find_spec("sae_probes").submodule_search_locations  # type: ignore[union-attr]
    source = (Path(folder) / file).read_text()
    if file == "utils_training.py":
        spec = spec_from_file_location("peer_training", Path(folder) / file)
        module = module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules["peer_training"] = module  # where its dataclass looks for types
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        return [getattr(module, name) for name in names]
    import ast

    found: dict[str, Any] = {"np": np, "torch": pytest.importorskip("torch"), "Callable": Any}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.returns = None
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
            exec(compile(ast.Module([node], []), file, "exec"), found)  # noqa: S102
    return [found[name] for name in names]


def latents(n: int, k: int, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    y = random.permutation(np.arange(n) % 2 == 0)
    x = np.maximum(random.standard_normal((n, k)) - 1.0, 0.0) * random.lognormal(size=k)
    return x + y[:, None] * random.random((n, k)) * (np.arange(k) % 3 == 0), y


@needs_peer
@pytest.mark.parametrize(("n", "k"), [(600, 1), (600, 5), (1024, 16), (1024, 64), (100, 4)])
def test_l2_regression_is_that_of_sae_probes(n: int, k: int) -> None:
    x, y = latents(2 * n, k)
    (find_best_reg,) = peer("utils_training.py", "find_best_reg")
    theirs = find_best_reg(x[:n], y[:n].astype(int), x[n:], y[n:].astype(int), seed=42)
    ours = best_regression(x[:n], y[:n], x[n:], y[n:])
    assert ours["C"] == theirs.classifier.C
    for name in ("test_auc", "test_acc", "test_f1", "val_auc"):
        assert ours[name] == pytest.approx(getattr(theirs.metrics, name), abs=1e-3)
    exact = LogisticRegression(C=ours["C"], tol=1e-13, max_iter=10000, solver="newton-cholesky")
    scores = exact.fit(x[:n], y[:n]).predict_proba(x[n:])[:, 1]
    wins = (scores[y[n:]][:, None] > scores[~y[n:]]).mean()
    assert ours["test_auc"] == pytest.approx(wins, abs=1e-6)


@needs_peer
def test_l1_regression_is_that_of_sae_probes() -> None:
    x, y = latents(400, 4)
    (find_best_reg,) = peer("utils_training.py", "find_best_reg")
    data = x[:200], y[:200], x[200:], y[200:]
    theirs = find_best_reg(*data, penalty="l1", seed=42)
    ours = best_regression(*data, penalty="l1")
    assert ours["C"] == theirs.classifier.C
    assert ours["test_auc"] == pytest.approx(theirs.metrics.test_auc, abs=1e-12)


@needs_peer
def test_splits_and_selection_are_those_of_sae_probes() -> None:
    import torch

    (split,) = peer("utils_data.py", "get_train_test_indices")
    x, y = latents(901, 200)
    for ours, theirs in zip(split_indices(y, 500, 400), split(y, 500, 400), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    sort, normalize = peer("run_sae_evals.py", "get_sorted_indices", "mean_act_normalization")
    given = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(int))
    for function, normalized in ((normalize, True), (None, False)):
        theirs = sort(*given, function).numpy()
        np.testing.assert_array_equal(select(x.astype(np.float32), y, normalized)[:50], theirs[:50])


def test_split_is_balanced_disjoint_and_as_drawn() -> None:
    y = np.arange(301) % 3 > 0
    train, test = split_indices(y, 101, 60)
    assert (len(train), y[train].sum(), len(test), y[test].sum()) == (101, 51, 60, 30)
    assert not {*train} & {*test}
    with pytest.raises(InputError, match="needs as many rows of either class"):
        split_indices(y, 101, 190)


def test_scores_by_their_definition() -> None:
    from sklearn.metrics import f1_score

    x, y = latents(600, 3)
    found = best_regression(x[:300], y[:300], x[300:], y[300:])
    model = LogisticRegression(C=found["C"], tol=1e-12).fit(x[:300], y[:300])
    right = model.predict(x[300:])
    assert found["test_f1"] == pytest.approx(f1_score(y[300:], right, average="weighted"))
    assert found["test_acc"] == (right == y[300:]).mean()
