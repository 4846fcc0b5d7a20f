from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from palinka.cli.evaluate import Found, _of_control, control_run, control_settings
from palinka.errors import InputError
from palinka.evaluation.controls import controls
from palinka.evaluation.values import Group, Measurement, Value, gap_to_control

SEEDS = 4


def evaluated(
    fvu: float, auc: float, share: float, seed: int, chance: float = 0.5
) -> tuple[Any, dict[str, Group]]:
    """A recipe of some seeds with metrics around these values; losses have no control."""
    random = np.random.default_rng(seed)
    ones = [SimpleNamespace(name=f"seed={i}", recipe="wide", seed=i) for i in range(SEEDS)]
    found = []
    for one in ones:
        for metric, value, task, k in (
            ("fvu", fvu, "", None), ("auc", auc, "plural", 2), ("auc", chance, "past", 1),
            ("auc", chance, "past", 2), ("auc", chance, "random_word", 2), ("l0", 32.0, "", None),
            ("ce_delta", 0.1, "", None),
        ):  # fmt: skip
            size = value + 0.01 * random.standard_normal()
            influence = 0.001 * random.standard_normal(20)
            found.append(
                Measurement(metric, one.name, size, influence, "documents", 20, 19.0, task, k)
            )
    stable = Value(
        "stability_share_corrected", "wide", share, share - 0.03, share + 0.03,
        {"seeds": SEEDS}, "jackknife over seeds",
    )  # fmt: skip
    dense = Value("auc", "dense", auc, auc, auc, {"items": 20}, "clustered", k=5)
    near = Value("k_for_dense", "seed=0", 2.0, method="none: the smallest k")
    return SimpleNamespace(dictionaries=ones), {"core": Group(found, [stable, dense, near])}


def test_gaps_to_the_control_have_intervals_and_a_headline() -> None:
    subject, groups = evaluated(fvu=0.2, auc=0.9, share=0.30, seed=0)
    control, of_control = evaluated(fvu=0.2, auc=0.6, share=0.28, seed=1)
    group = controls(subject, groups, control, of_control, "permuted")
    values = {(v.metric, v.of): v for v in group.values if v.task in ("", "plural")}
    assert not any(metric.startswith("ce_") for metric, _ in values)
    gap, beside = values["auc_gap", "wide"], values["auc", "wide on the random model"]
    means = [np.mean([m.value for m in g["core"].measurements if m.task == "plural"])
             for g in (groups, of_control)]  # fmt: skip
    assert gap.value == pytest.approx(means[0] - means[1])
    assert beside.value == pytest.approx(means[1])
    assert 0 < gap.low < gap.value < gap.high
    assert gap.n == {"seeds": SEEDS, "documents": 20}
    share = values["stability_share_corrected_gap", "wide"]
    half = 0.03 * np.sqrt(2)
    np.testing.assert_allclose([share.low, share.high], [0.02 - half, 0.02 + half])
    expected = "the random model in fvu, auc past (k = 1, 2), stability_share_corrected"
    assert (group.weak, group.notes) == ({"wide": expected}, [])
    assert values["k_for_dense_gap", "seed=0"].method.startswith("none: ")
    assert {*group.bands} == {"fvu", "l0", "stability_share_corrected"}, "of no baseline"
    titles = [axes.get_title("left") for axes in group.figures["control"].axes]
    assert titles == ["fvu", "stability share\ncorrected"]
    low, high = group.bands["fvu"]
    assert low < values["fvu", "wide on the random model"].value < high


def test_a_gap_without_variance_or_of_values_without_an_interval_has_none() -> None:
    one = Measurement("l0", "a", 16.0, np.zeros(9), "documents", 9, 8.0)
    other = replace(one, of="b", value=12.0)
    *_, gap = gap_to_control([one], [other], "a", "b", {})
    assert (gap.value, np.isnan(gap.low), gap.method) == (4.0, True, "none: no variance")
    few = replace(one, influence=np.full(9, np.nan))
    assert gap_to_control([few], [other], "a", "b", {})[2].method.endswith("has no interval")
    varies = [replace(one, of=f"{s}", value=s, influence=np.full(9, 0.1)) for s in (1.0, 2.0, 4.0)]
    *_, gap = gap_to_control(varies, [other], "a", "b", {})
    assert [*gap.n.items()] == [("documents", 9), ("seeds", 3)], "as of values"


def test_dictionaries_taken_as_one_recipe_are_judged() -> None:
    pair = []
    for share in (0.30, 0.28):
        subject, groups = evaluated(fvu=0.2, auc=0.9, share=share, seed=0)
        (stable, *_) = groups["core"].values
        pair += [subject, {"stability": Group(values=[replace(stable, of="all dictionaries")])}]
    group = controls(*pair, "permuted")  # type: ignore[arg-type]
    assert group.weak == {"all dictionaries": "the random model in stability_share_corrected"}


def test_the_recipe_of_an_imported_checkpoint_is_not_known(tmp_path: Path) -> None:
    file = tmp_path / "sae.ckpt"
    file.touch()
    with pytest.raises(InputError, match="control permuted: the checkpoint was imported"):
        control_run(str(file), "permuted")
    assert control_run(str(file), "permuted", "other.ckpt") == Path("other.ckpt")


def test_the_control_of_one_variant_is_that_variant_alone() -> None:
    def found(run: str, name: str, recipe: str) -> Found:
        return Found(Path(run, recipe, "checkpoints", "last.ckpt"), name, recipe, 7, "version_0")

    mine = [found("version_0", "k=3", "k=3")]
    control = [found("control/version_0", "k=3,seed=7", "k=3"), found("control", "k=5", "k=5")]
    assert [one.name for one in _of_control(mine, control)] == ["k=3,seed=7"]
    with pytest.raises(InputError, match="version_0 has none of the recipes k=3, k=4"):
        _of_control([*mine, found("version_0", "k=4", "k=4")], control[1:])
    other = [found("version_0", "k=4", "k=4")]
    with pytest.raises(InputError, match="version_0 has k=3,seed=7, k=5, not k=4; give the check"):
        _of_control(other, control)
    assert _of_control(other, control[1:])[0].recipe == "k=4", "one alone, whatever its name"


def test_a_control_has_the_settings_of_its_recipe() -> None:
    paths = "lightning.pytorch.callbacks", "palinka.training.callbacks"
    names = [f"{paths[0]}.EarlyStopping", f"{paths[1]}.LanguageModelMetrics"]
    left_out = [f"{paths[1]}.RunAnalyses", f"{paths[0]}.ModelCheckpoint"]
    kept, others = ([{"class_path": one} for one in some] for some in (names, left_out))
    trainer = {"callbacks": [*others, *kept]}
    given = {"data": {"language_model": "mini", "seed": 3}, "trainer": trainer}
    model = {"name": "mini", "control": "gaussian"}
    expected = {"data": {"language_model": model, "seed": 3}, "trainer": {"callbacks": kept}}
    assert control_settings(given, "gaussian") == {**expected, "ckpt_path": None}
