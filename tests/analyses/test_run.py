import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse.typing import Path_fr
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from palinka import analyses
from palinka.analyses import figures
from palinka.analyses import run as running
from palinka.analyses.findings import Findings
from palinka.analyses.logit_lens import LogitLens
from palinka.analyses.reader import ActivationReader, Encoder
from palinka.analyses.result import takes
from palinka.analyses.run import AnalysisEntry, HeatmapEntry, _heatmaps, find_analysis, run_analysis
from palinka.analyses.stimuli import load_stimuli
from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.interventions.engine import run
from palinka.interventions.plan import Intervention, Patch
from palinka.interventions.study import find_study
from palinka.language_models import Tokens
from palinka.language_models.token_text import bos_id
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.run_analyses import encoder_of

pytestmark = pytest.mark.usefixtures("undrawn")
Write = Callable[..., str]

SITE = "blocks.3.mlp.pre"
GROUPS = {
    "animals": ["horse", "dog", "bird", "cat", "fish"],
    "food": ["bread", "apple", "soup", "salt", "sugar"],
}
PASSAGE = "The road from Vienna to Budapest follows the Danube, and Vienna is not far."
FRAMES = [f"Then {name} saw {{target}} at the door." for name in ("John", "Anne", "Mary", "Jack")]
MORE_FRAMES = [
    f"{name} saw {{target}} at the {place}." for name in ("John", "Anne", "Mary", "Jack")
    for place in ("door", "gate", "road", "lake", "well")
]  # fmt: skip
TARGETS = {"him": "him", "her": "her"}
# What units are ranked by, of every analysis that takes several sites.
ONE_SITE = {
    "category_score": "score",
    "generalized_eigendecomposition": "pattern_b",
    "latent_statistics": "density",
    "pairwise_mutual_information": None,
    "unit_tuning": "t",
}


GED = {"analysis": "generalized_eigendecomposition"}


def entry(analysis: str, stimuli: str | Path_fr, **changes: Any) -> AnalysisEntry:
    return replace(AnalysisEntry("some", analysis, stimuli, SITE), **changes)  # type: ignore[arg-type]


def without_figures(patch: pytest.MonkeyPatch) -> None:
    """Let analyses draw nothing but heatmaps."""
    undrawn = {"draw": None, "overview": None}
    patch.setattr(running, "find_analysis", lambda *name: find_analysis(*name)._replace(**undrawn))


@pytest.fixture
def figureless(monkeypatch: pytest.MonkeyPatch) -> None:
    without_figures(monkeypatch)


def test_two_conditions_go_to_a_and_b(mini: ActivationReader, stimuli: Write) -> None:
    path = stimuli(kind="words", conditions=GROUPS)
    findings = run_analysis(entry("unit_tuning", path, options={"test": "welch"}), mini)
    prepared = load_stimuli(path).prepare(mini.model.tokenizer)
    vectors = mini.pooled(prepared, [(SITE, None)])[SITE, None]
    expected = analyses.unit_tuning(vectors[:5], vectors[5:], test="welch")
    np.testing.assert_array_equal(findings.arrays()["t"], expected.t)
    settings = findings.settings
    assert (settings["sites"], settings["options"]) == ([SITE], {"test": "welch"})
    assert settings["stimuli_hash"] == load_stimuli(path).hash
    assert findings.figures


def plain_score(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Pearson's r of the cosine similarities of all pairs of rows."""
    similarities = []
    for rows in (x.astype(np.float64), y.astype(np.float64)):
        units = [row / np.linalg.norm(row) for row in rows]
        similarities.append([a @ b for i, a in enumerate(units) for b in units[i + 1 :]])
    return float(np.corrcoef(*similarities)[0, 1])


def untrained(site: str, seed: int) -> Encoder:
    torch.manual_seed(seed)
    return encoder_of(SparseAutoencoderModule(KSparseAutoencoder(512, 96, k=8)), {"site": site})


OTHER = "blocks.4.mlp.pre"
Q, K = "blocks.2.attn.q", "blocks.2.attn.k"


@pytest.mark.parametrize(
    ("sites", "autoencoders", "parts"),
    [
        ([Q, K], [], {"": (Q, K)}),
        ("blocks.2.attn.[qk]", [], {"": (Q, K)}),
        # Layer by layer; each with the first; every pair.
        (
            ["blocks.[23].attn.q", "blocks.[23].attn.k"],
            [],
            {f"{q}/{q[:-1]}k": (q, f"{q[:-1]}k") for q in (Q, "blocks.3.attn.q")},
        ),
        (["hidden.0", "hidden.[01]"], [], {"": ("hidden.0", "hidden.1")}),
        (
            "hidden.[012]",
            [],
            {
                f"hidden.{i}/hidden.{j}": (f"hidden.{i}", f"hidden.{j}")
                for i, j in ((0, 1), (0, 2), (1, 2))
            },
        ),
        # Units with latents, the latents of two autoencoders, and those of one for each layer.
        ([SITE, SITE], [(SITE, 0)], {"": (SITE, (SITE, 0))}),
        ([SITE, SITE], [(SITE, 0), (SITE, 1)], {"": ((SITE, 0), (SITE, 1))}),
        ("blocks.[34].mlp.pre", [(SITE, 0), (OTHER, 1)], {"": ((SITE, 0), (OTHER, 1))}),
        (
            ["blocks.[34].mlp.pre"] * 2,
            [(SITE, 0), (OTHER, 1)],
            {SITE: (SITE, (SITE, 0)), OTHER: (OTHER, (OTHER, 1))},
        ),
    ],
)
def test_two_sites_go_to_x_and_y(
    sites: Any, autoencoders: Any, parts: dict[str, Any], mini: ActivationReader, stimuli: Write
) -> None:
    path = stimuli(kind="words", conditions=GROUPS)
    encoders = [untrained(*each) for each in autoencoders]
    reader = ActivationReader(mini.language_model, encoders, lambda: mini.model)
    findings = run_analysis(entry("representational_similarity", path, sites=sites), reader)
    assert list(findings.results) == list(parts)
    prepared = load_stimuli(path).prepare(mini.model.tokenizer)
    vectors = {}
    for each in chain(*parts.values()):
        site, encoder = (each, None) if isinstance(each, str) else (each[0], untrained(*each))
        vectors[each] = []
        for ids in prepared.tokens:
            acts = mini.model.read(Tokens.of([list(ids)]), [site])[site][0]
            rows = acts if encoder is None else encoder.encode(acts).detach()
            vectors[each].append(rows.mean(dim=0).numpy())
    for part, (x, y) in parts.items():
        expected = plain_score(np.stack(vectors[x]), np.stack(vectors[y]))
        assert findings.results[part].scalars()["score"] == pytest.approx(expected, abs=1e-4)
    # Of several pairs the one in the middle is drawn, and all of them together.
    drawn = {name.rpartition("/")[0] for name in findings.figures if "/" in name}
    assert drawn == (set() if len(parts) == 1 else {list(parts)[len(parts) // 2]})
    assert ("scores" in findings.figures) == (len(parts) > 1)


@pytest.mark.usefixtures("figureless")
def test_groups_are_the_conditions(mini: ActivationReader, stimuli: Write) -> None:
    path = stimuli(kind="words", conditions=GROUPS)
    findings = run_analysis(entry("representational_similarity", path, sites=[Q, K]), mini)
    prepared = load_stimuli(path).prepare(mini.model.tokenizer)
    x, y = mini.pooled(prepared, [(Q, None), (K, None)]).values()
    for number, name in enumerate(GROUPS):
        rows = [at for at, each in enumerate(prepared.conditions) if each == name]
        found = findings.arrays()["group_scores"][number]
        assert found == pytest.approx(plain_score(x[rows], y[rows]), abs=1e-4)


def test_one_of_two_autoencoders_of_a_site_has_to_be_chosen(
    mini: ActivationReader, stimuli: Write
) -> None:
    path = stimuli(kind="words", conditions=GROUPS)
    reader = ActivationReader(mini.language_model, [untrained(SITE, 0), untrained(SITE, 1)])
    with pytest.raises(InputError, match=r"2 autoencoders of blocks\.3\.mlp\.pre are given"):
        run_analysis(entry("unit_tuning", path, options={"test": "welch"}), reader)
    with_bos = replace(untrained(OTHER, 0), bos=True)
    with pytest.raises(InputError, match="one autoencoder was trained with a BOS token"):
        ActivationReader(mini.language_model, [untrained(SITE, 0), with_bos])


def test_each_condition_and_site_goes_to_x(mini: ActivationReader, stimuli: Write) -> None:
    path = stimuli(kind="words", conditions=GROUPS)
    findings = run_analysis(entry("pairwise_mutual_information", path, sites="hidden.[01]"), mini)
    assert list(findings.results) == [
        "hidden.0/animals", "hidden.0/food", "hidden.1/animals", "hidden.1/food",
    ]  # fmt: skip
    # Of several sites, the one in the middle is drawn by itself, with all conditions, and all of
    # them together.
    drawn = {name for name in findings.figures if "/" in name}
    assert drawn == {"hidden.1/matrices", "hidden.1/comparison"}
    assert "distributions" in findings.figures
    prepared = load_stimuli(path).prepare(mini.model.tokenizer)
    vectors = mini.pooled(prepared, [("hidden.1", None)])["hidden.1", None]
    expected = analyses.pairwise_mutual_information(vectors[5:]).mutual_information
    found = findings.arrays()["hidden.1/food/mutual_information"]
    np.testing.assert_array_equal(found, expected)


def test_each_category_of_a_passage_goes_to_targets_and_heatmaps_are_drawn(
    mini: ActivationReader, stimuli: Write
) -> None:
    categories = {"cities": ["Vienna", "Budapest"], "rivers": ["Danube"]}
    path = stimuli(kind="passage", text=PASSAGE, categories=categories)
    heatmaps = HeatmapEntry(by="auc", ranks=[1, -1], units=[7])
    wanted = entry("category_score", path, options={"detector": True}, heatmaps=heatmaps)
    findings = run_analysis(wanted, mini)
    prepared = load_stimuli(path).prepare(mini.model.tokenizer)
    (acts,) = mini.every_token(prepared.tokens, SITE)
    auc = analyses.category_score(acts, prepared.targets["rivers"], detector=True).auc
    np.testing.assert_array_equal(findings.arrays()["rivers/auc"], auc)
    # The Danube is underlined, in one heatmap for each of the three units.
    assert len(findings.figures["rivers/heatmaps"].axes[0].lines) == 3
    heading = " ".join(t.get_text() for t in findings.figures["rivers/heatmaps"].axes[0].texts[:3])
    assert "(underlined: the words of rivers)" in heading
    for shown in (*(f"unit {u}, AUC" for u in (auc.argmax(), auc.argmin(), 7)), "Danube"):
        assert shown in findings.pages["rivers/heatmaps"]


def test_the_best_detector_is_drawn_first_and_alone_where_no_unit_has_a_score() -> None:
    acts = np.random.default_rng(0).random((30, 5), dtype=np.float32)
    targets = np.arange(30) % 5 == 0
    wanted = HeatmapEntry(by="score", ranks=[1])
    for x, shown in ((acts, ["AUC", "score"]), (acts - 9, ["AUC"])):
        result = analyses.category_score(x, targets, permutations=9)
        assert result.auc is not None
        drawn = [each.caption for each in _heatmaps(wanted, result, x, "units")]
        assert drawn[0].startswith(f"unit {result.auc.argmax()}, AUC {result.auc.max():.4g}, p ")
        assert [caption.split(", ")[1].split()[0] for caption in drawn] == shown
        assert drawn[-1].endswith(" (rank 1)")
    scored = analyses.category_score(acts, targets, permutations=9)
    assert scored.p_value is not None
    first = _heatmaps(wanted, scored, acts, "units")[-1].caption
    assert f", p {scored.p_value[scored.score.argmax()]:.3g} (rank 1)" in first


@pytest.mark.usefixtures("figureless")
def test_the_words_of_a_passage_are_exchanged(mini: ActivationReader, stimuli: Write) -> None:
    things = ["horse", "dog", "river", "bird", "bread", "salt", "sugar", "soup", "table", "house"]
    text = (
        "A horse met the dog by a river where one bird saw bread, salt and sugar, with "
        "the soup on a table near that old house of his."
    )
    path = stimuli(kind="passage", text=text, categories={"things": things})
    findings = run_analysis(entry("category_score", path, options={"permutations": 60}), mini)
    prepared = load_stimuli(path).prepare(mini.model.tokenizer)
    (acts,) = mini.every_token(prepared.tokens, SITE)
    expected = analyses.category_score(
        acts, prepared.targets["things"], permutations=60, words=prepared.tokens[0]
    )
    assert "whole words, 10 of the category" in expected.notes[-1]
    assert findings.results["things"].notes == expected.notes
    np.testing.assert_array_equal(findings.arrays()["things/auc_p_value"], expected.auc_p_value)


def test_both_directions_are_followed_through_every_text_and_site(
    mini: ActivationReader, stimuli: Write
) -> None:
    path = stimuli(kind="contrast", targets=TARGETS, frames=FRAMES)
    sites = ["hidden.1", "hidden.2"]
    wanted = entry("generalized_eigendecomposition", path, sites=sites, series=[2, "Anne"])
    findings = run_analysis(wanted, mini)
    assert "hidden.2/p_value_a" not in findings.scalars()
    _, mary, _, anne = findings.figures["hidden.2/series"].axes  # each in both directions
    for axes, name in ((mary, "Mary"), (anne, "Anne")):
        assert f" {name}" in [label.get_text() for label in axes.get_xticklabels()]
    with pytest.raises(InputError, match="series: 'Bob' is not one of the 8 texts"):
        run_analysis(replace(wanted, series=["Bob"]), mini)
    with pytest.raises(InputError, match="unit_tuning draws no series of tokens"):
        run_analysis(replace(wanted, analysis="unit_tuning"), mini)
    (legend,) = findings.figures["sites"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["her over him", "him over her"]


OWN = """
from dataclasses import dataclass

from matplotlib.figure import Figure
from palinka.analyses.result import Result, takes


@dataclass(frozen=True)
class Count(Result):
    items: int
    matched: bool


@takes("two conditions")
def count(a, b, pairs: bool = False):
    return Count(len(a) + len(b), pairs)


def count_figures(result, *, conditions, **context):
    return {"_".join(conditions): Figure()}


@takes("each condition")
def drawn(x):
    return Count(len(x), False)


def drawn_figures(result, *, condition, conditions, site, units, texts, **context):
    return {f"{condition} of {len(conditions)}, {site}, {units}": Figure()}


@takes("each condition")
def misnamed(items):
    return Count(len(items), False)


@takes("each condition")
def bare(x):
    return float(len(x))


def helper(a, b):
    return 0
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


@pytest.mark.parametrize("options", [{}, {"pairs": False}, {"pairs": True}])
def test_frames_are_pairs_unless_the_options_say_otherwise(
    options: dict[str, bool], mini: ActivationReader, stimuli: Write, own_file: Path
) -> None:
    sentences = {name: [frame.replace("{target}", name) for frame in FRAMES] for name in TARGETS}
    for content, by_default in (({"frames": FRAMES}, True), ({"sentences": sentences}, False)):
        path = stimuli(kind="contrast", targets=TARGETS, **content)
        findings = run_analysis(entry(f"{own_file}:count", path, options=options), mini)
        pairs = options.get("pairs", by_default)
        assert findings.scalars() == {"items": 8.0, "matched": float(pairs)}
        assert findings.settings["options"].get("pairs", False) == pairs


@pytest.mark.usefixtures("own_file")
def test_an_analysis_in_a_file_is_found_beside_the_configuration(
    mini: ActivationReader, stimuli: Write, tmp_path: Path
) -> None:
    stimuli(kind="words", conditions=GROUPS)
    beside = Path_fr("stimuli.yaml", cwd=str(tmp_path))
    assert list(run_analysis(entry("own.py:count", beside), mini).figures) == ["animals_food"]
    drawn = run_analysis(entry("own.py:drawn", beside), mini)
    assert drawn.scalars()[f"{SITE}/food/items"] == 5.0
    first = f"{SITE}/animals/animals of 2, {SITE}, units"
    assert list(drawn.figures) == [first, first.replace("animals", "food")]
    for name, expected in {
        "own.py:coun": "did you mean 'count'",
        "own.py:helper": "does not declare its data",
        "other.py:count": "other.py does not exist",
        "own.py:misnamed": "missing a required argument: 'items'; it is given",
        "own.py:bare": "returned float; expected an analyses.Result",
    }.items():
        with pytest.raises(InputError, match=expected):
            run_analysis(entry(name, beside), mini)


@pytest.mark.usefixtures("figureless")
def test_him_and_her_differ_where_labels_are_swapped_within_sentences(
    mini: ActivationReader, repository: Path
) -> None:
    path = str(repository / "configs" / "stimuli" / "him_her.yaml")
    for pairs, low, high in ((True, 0.0, 0.03), (False, 0.5, 1.0)):
        options = {"permutations": 1000, "pairs": pairs}
        wanted = entry("generalized_eigendecomposition", path, options=options)
        found = run_analysis(wanted, mini).scalars()
        assert low < min(found["p_value_a"], found["p_value_b"])
        assert max(found["p_value_a"], found["p_value_b"]) < high


def test_all_analyses_are_compared() -> None:
    studies = {name for name in analyses.__all__ if find_study(getattr(analyses, name).takes)}
    assert {*ONE_SITE, "representational_similarity", *studies} == set(analyses.__all__)
    assert set(analyses.__all__) <= vars(figures).keys()
    with pytest.raises(InputError, match=f"FUNCTION; choose from {', '.join(analyses.__all__)}$"):
        find_analysis("none")


def of_site(named: Mapping[str, Any], site: str) -> dict[str, Any]:
    """What belongs to one of several sites, without its name."""
    mine = ((name.partition(f"{site}/"), value) for name, value in named.items())
    return {name: value for (before, prefix, name), value in mine if prefix and not before}


@pytest.mark.parametrize("analysis", ONE_SITE)
def test_what_is_found_at_one_of_several_sites_is_what_is_found_there_alone(
    analysis: str, mini: ActivationReader, stimuli: Write
) -> None:
    categories = {"c": ["Vienna", "Danube"]}
    text: Any = stimuli("text.yaml", kind="passage", text=PASSAGE, categories=categories)
    frames = stimuli(kind="contrast", targets=TARGETS, frames=FRAMES)
    by = ONE_SITE[analysis]
    wanted = entry(
        analysis,
        text if analysis in ("category_score", "latent_statistics") else frames,
        heatmaps=HeatmapEntry(by=by, units=[3], text=text) if by else None,
    )
    sites = ["hidden.2", "blocks.3.mlp.pre"]  # of unlike widths
    several = run_analysis(replace(wanted, sites=sites), mini)
    for site in sites:
        with pytest.MonkeyPatch.context() as patch:
            if site != sites[1]:
                without_figures(patch)
            alone = run_analysis(replace(wanted, sites=site), mini)
        for method in (Findings.scalars, Findings.arrays, Findings.tables):
            expected = {
                name.removeprefix(f"{site}/"): found for name, found in method(alone).items()
            }
            np.testing.assert_equal(of_site(method(several), site), expected)
        titled = {name: page.replace(f"{site}/", "") for name, page in several.pages.items()}
        pages = {name: page.replace(f" {site}", "") for name, page in of_site(titled, site).items()}
        assert pages == alone.pages
        # Only the site in the middle has its figures drawn; an overview has no site in its name.
        drawn = {name for name in of_site(several.figures, site) if "heatmaps" not in name}
        assert drawn <= {name.removeprefix(f"{site}/") for name in alone.figures}
        assert bool(drawn) == (site == sites[1])


@pytest.mark.usefixtures("figureless")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"analysis": "unit_tunning"}, "did you mean 'unit_tuning'"),
        ({"options": {"tets": "welch"}}, "did you mean 'test'"),
        ({"options": {"test": "welsh"}}, "option test is 'welsh'; expected 'paired' or 'welch'"),
        ({"options": {"a": 3}}, "has no option 'a'"),
        *(
            ({"analysis": name, "options": {"direction": "noise"}}, "has no option 'direction'")
            for name in ("activation_patching", "attribution_patching", "path_patching")
        ),
        ({"options": {"alpha": "half"}}, "option alpha is 'half'; expected a number"),
        ({"options": {"seed": -1}}, "the option seed is -1; expected at least 0"),
        ({**GED, "options": {"shrinkage": "some"}}, "expected a number or 'ledoit_wolf' or 'oas'"),
        ({"sites": "blocks.9.mlp.pre"}, "no site 'blocks.9.mlp.pre'"),
        ({"sites": ["hidden.0"], "analysis": "representational_similarity"}, "compares two sites"),
        ({"analysis": "category_score"}, "over all tokens of a text; give a passage"),
        ({"heatmaps": HeatmapEntry(by="t")}, "heatmaps are drawn over a passage"),
        ({"heatmaps": "score"}, "cannot rank units by 'score'; expected one of t, p"),
        ({"stimuli": "text.yaml"}, "compares items; give contrast, words, carrier or occurrences"),
        ({"name": "../up"}, "becomes a folder"),
        ({"stimuli": None}, "null for stimuli"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(
    changes: dict[str, Any], expected: str, mini: ActivationReader, stimuli: Write
) -> None:
    path = stimuli(kind="words", conditions=GROUPS)
    text: Any = stimuli("text.yaml", kind="passage", text=PASSAGE)
    if changes.get("stimuli"):
        changes = {"stimuli": text}
    if changes.get("heatmaps") == "score":
        changes = {"heatmaps": HeatmapEntry(by="score", text=text)}
    with pytest.raises(InputError, match=expected):
        run_analysis(replace(entry("unit_tuning", path), **changes), mini)


def test_unknown_data_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'two conditions'"):
        takes("two condition")


SLOTS = {
    "a": ["king", "father", "queen", "mother"], "b": ["queen", "mother", "king", "father"],
    "he": ["he", "he", "she", "she"], "she": ["she", "she", "he", "he"],
}  # fmt: skip
ENDS = ["stayed at home because", "sang an old song when", "knew the road, so", "slept, although",
        "opened the letter, and", "lived in a village until"]  # fmt: skip
HE_SHE: dict[str, Any] = {
    "kind": "paired", "slots": SLOTS, "fill": "zip", "answer": "{he}", "wrong": "{she}",
    "templates": {
        end.split()[-1]: {side: f"The {{{slot}:subject}} {end}" for side, slot in
                          (("clean", "a"), ("corrupted", "b"))}
        for end in ENDS
    },
}  # fmt: skip


def test_texts_of_a_frame_or_template_are_one_cluster(
    mini: ActivationReader, stimuli: Write
) -> None:
    frames = stimuli("frames.yaml", kind="contrast", targets=TARGETS, frames=MORE_FRAMES)
    quick = {"permutations": 32, "resamples": 0}
    lens = run_analysis(entry("logit_lens", frames, options=quick), mini).results[""]
    assert isinstance(lens, LogitLens)
    assert lens.clusters == len(load_stimuli(frames).prepare(mini.model.tokenizer).tokens) // 2
    short = {"length": 4, "sequences": 6}
    given = entry("head_scores", stimuli(**HE_SHE), options=quick, intervention=short)
    findings = run_analysis(given, mini)
    assert findings.settings["attention"] == "eager"
    found = findings.results[""].arrays()["sink/p"]
    # The signs of six templates have 32 patterns.
    np.testing.assert_array_equal(found * 32, np.round(found * 32))
    assert found.min() == 1 / 32


def test_interventions_are_run_on_pairs(mini: ActivationReader, stimuli: Write) -> None:
    path = stimuli(**HE_SHE)
    settings = {"components": ["resid", "heads"], "positions": ["subject"], "direction": "noise"}
    outcomes = ["logit_difference", "log_probability"]
    given = entry("activation_patching", path, intervention=settings, outcomes=outcomes)
    findings = run_analysis(replace(given, options={"only": "all"}), mini)
    assert list(findings.results) == outcomes
    pairs = load_stimuli(path).prepare_pairs(mini.model.tokenizer)
    cells = {f"resid {i}": Intervention(f"hidden.{i}", Patch(), "subject") for i in range(6)}
    cells |= {"head": Intervention("blocks.2.attn.z.3", Patch())}
    found = run(mini.model, pairs, [[each] for each in cells.values()], base="clean")
    effects = found.values["logit_difference"] - found.clean["logit_difference"]
    arrays = findings.results["logit_difference"].arrays()
    np.testing.assert_allclose(arrays["resid/effects"][:, 0], effects[:-1], atol=1e-5)
    np.testing.assert_allclose(arrays["heads/effects"][2, 3], effects[-1], atol=1e-5)
    assert np.abs(effects[0]).min() > 0.1
    assert findings.settings["intervention"] == settings
    assert findings.settings["attention"] == "sdpa"
    line = findings.results["logit_difference"].headline("units", ())
    strongest = arrays["resid/effect"][:, 0]
    layer = int(np.abs(strongest).argmax())
    assert f"resid layer {layer} subject {strongest[layer]:+.3g}, recovery " in line
    assert "of 30 cells change the logit difference (sign flips of 6 templates" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intervention": {"component": ["resid"]}}, "no intervention setting 'component'"),
        ({"intervention": {"direction": "backward"}}, "direction is 'backward'; expected"),
        (
            {"intervention": {"components": ["attn.uot"]}},
            "'attn.uot' is not a component (did you mean 'attn.out'?)",
        ),
        (
            {"intervention": {"selection": {"analysis": "x"}}},
            "'x' has no findings yet; list it first",
        ),
        *(
            ({"intervention": {"selection": given}}, message)
            for given, message in (
                ({"by": "t"}, "the analysis '' has no findings yet"),
                ({"analysis": "x", "kk": 3}, "has no key of selection 'kk' (did you mean 'k'"),
                ({"analysis": "x", "k": 0}, "the key of selection k is 0; expected at least 1"),
            )
        ),
        ({"outcomes": ["accuracy"]}, "'accuracy'"),
        (
            {
                "analysis": "attribution_patching",
                "outcomes": ["logit_difference", "kl"],
                "intervention": {"direction": "noise"},
            },
            "kl has the gradient 0 in the clean run, which direction: noise differentiates; set",
        ),
        ({"outcomes": ["top"]}, "'top'"),
        ({"intervention": {"components": []}}, "setting components is []; expected at least one"),
        (
            {"analysis": "attribution_patching", "intervention": {"steps": -1}},
            "setting steps is -1; expected at least 0",
        ),
    ],
)
def test_impossible_interventions_are_rejected(
    changes: dict[str, Any], message: str, mini: ActivationReader, stimuli: Write
) -> None:
    given = entry("activation_patching", stimuli(**HE_SHE))
    with pytest.raises(InputError, match=re.escape(message)):
        run_analysis(replace(given, **changes), mini)


def test_interventions_need_paired_stimuli(mini: ActivationReader, stimuli: Write) -> None:
    given = entry("activation_patching", stimuli(kind="words", conditions=GROUPS))
    with pytest.raises(InputError, match="give paired stimuli"):
        run_analysis(given, mini)


def test_prompts_begin_as_the_contexts_of_the_fit(
    mini: ActivationReader, stimuli: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = SparseAutoencoderModule(KSparseAutoencoder(512, latent_dim=32, k=8)).eval()
    settings = {"components": ["latents"], "units": [*range(8)], "value": "zero"}

    def effects(**bos: bool) -> Any:
        source = {"site": SITE, "bos": bos.get("encoder", False)}
        reader = ActivationReader(mini.language_model, [encoder_of(module, source)])
        path = stimuli(**HE_SHE, bos=bos.get("stimuli", False))
        given = entry("ablation", path, intervention=settings)
        found = run_analysis(replace(given, options={"only": "all"}), reader)
        return found.arrays()["latents/effects"]

    reader = ActivationReader(
        mini.language_model, [encoder_of(module, {"site": SITE, "bos": True})]
    )
    options = {"permutations": 0}
    frames = stimuli("frames.yaml", kind="contrast", targets=TARGETS, frames=FRAMES)
    texts = entry("ablation", frames, intervention=settings)
    texts = replace(texts, outcomes=["cross_entropy"])
    with pytest.raises(InputError, match="4 texts; a test over texts needs at least 6"):
        run_analysis(texts, reader)
    (found,) = run_analysis(replace(texts, options=options), reader).results.values()
    items = load_stimuli(frames).prepare(mini.model.tokenizer).tokens
    several = [torch.tensor([bos_id(mini.model.tokenizer), *ids]) for ids in items]
    losses = [cross_entropy(mini.model.logits(ids[None])[0, :-1], ids[1:]) for ids in several]
    assert found.clean == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    without_figures(monkeypatch)
    expected = effects(stimuli=True)
    np.testing.assert_array_equal(effects(encoder=True), expected)
    assert np.abs(effects() - expected).max() > 1e-3


@pytest.mark.usefixtures("figureless")
def test_units_of_an_earlier_finding_are_patched(mini: ActivationReader, stimuli: Write) -> None:
    frames = stimuli(kind="contrast", targets=TARGETS, frames=FRAMES)
    chosen = run_analysis(replace(entry("unit_tuning", frames), name="tuning"), mini)
    selection = {"analysis": "tuning", "by": "t", "k": 3, "side": "negative"}
    settings = {"components": ["neurons"], "selection": selection}
    given = entry("activation_patching", stimuli(**HE_SHE), intervention=settings)
    findings = run_analysis(replace(given, options={"only": "all"}), mini, {"tuning": chosen})
    expected = np.argsort(chosen.arrays()["t"], kind="stable")[:3]
    axes = {"site": [SITE], "neuron": expected.tolist()}
    assert findings.results[""].axes == {"neurons": axes}


@pytest.mark.usefixtures("figureless")
def test_units_of_one_sign_are_only_those(mini: ActivationReader, stimuli: Write) -> None:
    chosen = run_analysis(
        entry("unit_tuning", stimuli(kind="contrast", targets=TARGETS, frames=FRAMES)), mini
    )
    (site,), t = chosen.settings["sites"], chosen.arrays()["t"]
    for side, sign in (("positive", 1), ("negative", -1)):
        found = chosen.strongest_units(site, len(t), k=len(t), side=side)
        np.testing.assert_array_equal(np.sort(found), np.flatnonzero(sign * t > 0))
        assert (np.diff(sign * t[found]) <= 0).all()
    with pytest.raises(InputError, match=rf"has the shape \({len(t)},\); expected a value"):
        chosen.strongest_units(site, len(t) + 1)


def test_units_are_not_lesioned_where_they_were_selected(
    mini: ActivationReader, stimuli: Write
) -> None:
    frames = stimuli(kind="contrast", targets=TARGETS, frames=FRAMES)
    chosen = run_analysis(replace(entry("unit_tuning", frames), name="tuning"), mini)
    path = stimuli("pairs.yaml", **HE_SHE)
    settings: dict[str, Any] = {"selection": {"analysis": "tuning", "k": 3}, "draws": 9}
    given = entry("lesion", path, intervention=settings)
    findings = run_analysis(given, mini, {"tuning": chosen})
    (result,) = findings.results.values()
    expected = chosen.strongest_units(chosen.settings["sites"][0], 512, k=3)
    np.testing.assert_array_equal(result.arrays()["units"], [expected])
    assert result.arrays()["null"].shape == (1, 9)
    same = replace(chosen, settings=chosen.settings | {"stimuli_hash": load_stimuli(path).hash})
    message = "3 units are to be chosen on the prompts they are tested on; give 'tuning' other "
    message += "stimuli, or set holdout: frames"
    with pytest.raises(InputError, match=message):
        run_analysis(given, mini, {"tuning": same})


@pytest.mark.usefixtures("figureless")
def test_units_are_selected_on_every_second_template(
    mini: ActivationReader, stimuli: Write
) -> None:
    slots = {"a": ["king", "father", "man"], "b": ["queen", "mother", "woman"]}
    path = stimuli(**{**HE_SHE, "slots": slots, "answer": "he", "wrong": "she"})
    chosen = run_analysis(replace(entry("unit_tuning", path), name="tuning"), mini)
    settings: dict[str, Any] = {"selection": {"analysis": "tuning", "k": 3}, "draws": 9}
    given = entry("lesion", path, intervention={**settings, "holdout": "frames"})
    (result,) = run_analysis(given, mini, {"tuning": chosen}).results.values()
    halves = [
        {**HE_SHE, "slots": slots, "answer": "he", "wrong": "she",
         "templates": dict(sorted(HE_SHE["templates"].items())[start::2])} for start in (0, 1)
    ]  # fmt: skip
    even, odd = (stimuli(f"half {i}.yaml", **half) for i, half in enumerate(halves))
    on_even = replace(run_analysis(entry("unit_tuning", even), mini), name="tuning")
    units = on_even.strongest_units(chosen.settings["sites"][0], 512, k=3)
    np.testing.assert_array_equal(result.arrays()["units"], [units])
    alone = run_analysis(entry("lesion", odd, intervention=settings), mini, {"tuning": on_even})
    np.testing.assert_allclose(result.arrays()["effects"], alone.arrays()["effects"], atol=1e-5)
    other = replace(chosen, settings=chosen.settings | {"stimuli_hash": "other"})
    with pytest.raises(InputError, match="with the stimuli of the lesion; 'tuning' is another"):
        run_analysis(given, mini, {"tuning": other})


def test_all_stimuli_that_are_read_are_recorded(mini: ActivationReader, stimuli: Write) -> None:
    prompts, neutral = stimuli(**HE_SHE), stimuli("neutral.yaml", kind="passage", text=PASSAGE)
    contrast = stimuli("contrast.yaml", kind="contrast", targets=TARGETS, frames=MORE_FRAMES)
    given: dict[str, Any] = {"contrast": contrast, "neutral": neutral, "draws": 2}
    given |= {"alphas": [-0.1, 0.0, 0.1], "neutral_tokens": 8}
    findings = run_analysis(entry("steering", prompts, intervention=given), mini)
    assert findings.settings["other_stimuli"] == {
        path: load_stimuli(path).hash for path in (contrast, neutral)
    }
