import importlib
import importlib.util
import json
import math
import re
import sys
import types
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csc_array

from chat_server import KEY, by_the_rule, serving
from palinka.data import Context
from palinka.errors import InputError
from palinka.evaluation import endpoint as client
from palinka.evaluation.endpoint import Endpoint
from palinka.evaluation.explain import (
    Item,
    estimate,
    explain,
    make_items,
    mean_score,
    missing_share,
    over_latents,
    parse,
    puzzles,
    score,
    score_puzzles,
    write_passage,
)
from palinka.evaluation.windows import LENGTH, Activity, choose_latents, read_activity
from palinka.language_models import LanguageModel

WORDS, PART = 60, 80


@pytest.fixture(scope="module")
def activity() -> Activity:
    """Of latents 0 to 8, each is active at two tokens, but not in every fourth part."""
    random, parts = np.random.default_rng(0), 400
    tokens = random.integers(0, WORDS, parts * PART)
    part = np.repeat(np.arange(parts), PART)
    latents = np.zeros((len(tokens), 12), np.float32)
    for latent in range(9):
        on = (tokens == 2 * latent) | (tokens == 2 * latent + 1)
        quiet = (part + latent) % 4 == 0
        latents[:, latent] = (on & ~quiet) * random.gamma(2.0, 1.0, len(tokens))
    latents[: 90 * PART, 9] = tokens[: 90 * PART] < 9  # in too few contexts
    latents[:, 10] = tokens < 40  # never silent for long
    return Activity(tokens, part, random.random(parts)[part] < 0.45, csc_array(latents))


@pytest.fixture(scope="module")
def items(activity: Activity) -> list[Item]:
    vocabulary = {i: f" w{i}".encode() for i in range(WORDS)}
    return make_items(activity, vocabulary, 8, seed=0)[0]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)


def test_windows_are_of_the_counts_kinds_and_documents_that_are_said(activity: Activity) -> None:
    found, reasons = choose_latents(activity, 200, seed=3)
    assert set(found) == set(range(9))
    assert reasons == {
        "never active": 1, "active in fewer than 100 contexts": 1, "silent in too few contexts": 1,
    }  # fmt: skip
    assert len(choose_latents(activity, 4, seed=3)[0]) == 4
    for latent, windows in found.items():
        values = activity.latents[:, [latent]].toarray()[:, 0]
        assert [len(starts) for starts in windows] == [40, 50, 25, 25]
        for name, starts in windows._asdict().items():
            within = starts[:, None] + np.arange(LENGTH)
            parts = activity.parts[within]
            assert (parts == parts[:, :1]).all(), "of one document"
            assert len(set(parts[:, 0])) == len(starts), "one of each context"
            assert (activity.shown[within] == (name == "shown")).all()
            often = np.isin(activity.tokens[within], [2 * latent, 2 * latent + 1]).any(axis=1)
            if name in ("hard", "random"):
                assert not values[within].any()
                assert often.all() or name == "random"
                continue
            # Five of each tenth of the peaks of contexts, the strongest tenth first.
            sides = activity.shown == (name == "shown")
            every = [values[(activity.parts == p) & sides].max() for p in np.unique(activity.parts)
                     if values[(activity.parts == p) & sides].any()]  # fmt: skip
            every = np.array_split(np.sort(every)[::-1], 10)
            tops = values[within].max(axis=1).reshape(10, -1)
            for band, own in zip(every, tops, strict=True):
                assert set(own.tolist()) <= set(np.array(band).tolist())
    assert not set(found[0].hard) & set(found[0].random)


@pytest.mark.parametrize("lengths", [(64, 64), (16, 96, 16)])
def test_few_documents_are_divided_too(lengths: tuple[int, ...]) -> None:
    contexts = [Context(np.arange(n), np.full(n, i), np.arange(n)) for i, n in enumerate(lengths)]
    model, identity = LanguageModel.from_pretrained("mini"), SimpleNamespace(encode=abs)
    for seed in range(4):
        found = read_activity(model, "blocks.0.resid", identity, contexts, 0, seed)
        assert 0 < found.shown.mean() < 1


def test_what_text_holds_is_no_mark_and_no_header() -> None:
    pieces = ["a<", "<", "b", ">>", "[Expla", "NATION]: x", "[1]"]
    marks = [False, True, True, False, False, False, False]
    assert write_passage(pieces, marks) == r"a\<<<\<b>>\>\>\[ExplaNATION]: x[1]"


def answer(text: str, *tokens: Any) -> dict[str, Any]:
    return {"message": {"content": text}, "logprobs": {"content": list(tokens)}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1,0]", [1, 0]), ("Sure:\n[ 0, 1 ] or [1, 1]", [0, 1]), ("[true, false]", [1, 0]),
        ("[1]", None), ("[1, 2]", None), ("1, 0", None), ("[a] [1, 0]", None), ("[[1, 0]]", [1, 0]),
        ('["1", "0"]', None), ("", None), ("[" * 99999, None), ("[1, 0", None),
    ],
)  # fmt: skip
def test_an_answer_is_the_first_list_of_the_right_length(text: str, expected: Any) -> None:
    np.testing.assert_equal(parse(answer(text), 2)[0], expected or [math.nan] * 2)


def test_probabilities_are_of_the_digits_in_the_list() -> None:
    def token(text: str, **options: float) -> dict[str, Any]:
        top = [{"token": name[-1], "logprob": math.log(p)} for name, p in options.items()]
        return {"token": text, "top_logprobs": top}

    tokens = [token("1"), token(": ["), token("1", d1=0.6, d0=0.2), token(","), token(" 0", d0=0.9)]
    text = "1: [1, 0]"
    np.testing.assert_allclose(parse(answer(text, *tokens, token("]")), 2)[1], [0.75, 0.0])
    assert np.isnan(parse(answer(text, *tokens[:3]), 2)[1]).all()
    bare = [{"token": "["}, {"token": "1"}, {"token": ","}, {"token": "0"}]
    assert np.isnan(parse(answer("[1,0]", *bare), 2)[1]).all()


def test_a_score_is_its_definition() -> None:
    kinds = np.array(["active"] * 6 + ["hard"] * 2 + ["random"] * 3)
    answers = np.array([1, 1, 1, 0, math.nan, 1, 1, 0, 0, 0, math.nan])
    chances = np.array([0.9, 0.8, 0.7, 0.2, math.nan, 0.6, 0.6, 0.1, 0.1, 0.1, math.nan])
    found = score(kinds, answers, chances)
    assert found["value"] == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert found["strict"] == pytest.approx((4 / 6 + 3 / 5) / 2)
    assert (found["n"], found["missing"], found["f1"]) == (9, 2, pytest.approx(8 / 10))
    assert (found["active"], found["hard"], found["random"]) == (0.8, 0.5, 1.0)
    wins = sum((a > b) + 0.5 * (a == b) for a in chances[[0, 1, 2, 3, 5]] for b in chances[6:10])
    assert found["auc"] == pytest.approx(wins / 20)
    # Wilson's intervals by hand: .376 to .964 of 4 in 5, .301 to .954 of 3 in 4.
    assert found["low"] == pytest.approx(
        0.775 - math.hypot(0.8 - 0.3755, 0.75 - 0.3006) / 2, abs=1e-3
    )
    assert found["high"] == pytest.approx(0.775 + math.hypot(0.1638, 0.2044) / 2, abs=1e-3)
    silent = score(kinds, np.full(11, math.nan), np.full(11, math.nan))
    assert (silent["missing"], silent["strict"]) == (11, 0.0)
    assert math.isnan(silent["value"])


def test_the_variance_of_a_mean_is_within_deciles_of_density() -> None:
    random = np.random.default_rng(0)
    density = random.random(60)
    values = density + 0.1 * random.standard_normal(60)
    found = mean_score(np.append(values, math.nan), np.append(density, 0.5))
    strata = np.array_split(values[np.argsort(density)], 10)
    variance, freedom = found.errors["latents"]
    assert (found.n, found.value) == ({"latents": 60}, pytest.approx(values.mean()))
    assert variance == pytest.approx(sum(6 * np.var(x, ddof=1) for x in strata) / 60**2)
    assert 20 < freedom < 50
    assert math.isnan(mean_score(values[:7], density[:7]).half_width())
    assert mean_score(np.ones(8), density[:8]).half_width() == pytest.approx(0.0)


@pytest.mark.slow
@pytest.mark.parametrize("latents", [8, 20, 50, 200])
@pytest.mark.parametrize(("slope", "spread"), [(0.0, 0.0), (-0.3, 0.1)])
def test_intervals_of_means_cover(latents: int, slope: float, spread: float) -> None:
    """Latents are drawn evenly by density, on which mean and spread of scores depend."""
    random, covered, runs = np.random.default_rng(latents), 0, 2000
    for _ in range(runs):
        density = (np.arange(latents) + random.random()) / latents
        noise = (0.05 + spread * density) * random.uniform(-2, 2, latents)
        low, high = mean_score(0.8 + slope * density + noise, density).interval()
        covered += low <= 0.8 + slope / 2 <= high
    assert 0.93 <= covered / runs <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("active", "silent"), [(0.9, 0.7), (0.5, 0.5), (0.98, 0.9)])
def test_intervals_of_latents_cover(active: float, silent: float) -> None:
    random, covered, runs = np.random.default_rng(0), 0, 2000
    kinds, nothing = np.repeat(["active", "hard"], 50), np.full(100, math.nan)
    for _ in range(runs):
        said = random.random(100) < np.repeat([active, 1 - silent], 50)
        found = score(kinds, said.astype(float), nothing)
        covered += found["low"] <= (active + silent) / 2 <= found["high"]
    assert 0.93 <= covered / runs <= 0.98


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of delphi 0.1.3 about detection, with stubs for those with many dependencies."""
    if not (found := importlib.util.find_spec("delphi")) or not found.submodule_search_locations:
        pytest.skip("delphi is not installed; pip install eai-delphi==0.1.3 --no-deps")
    (root,) = found.submodule_search_locations
    names = ("clients", "latents", "latents.latents", "scorers", "scorers.classifier")
    for name in names:
        stub = types.ModuleType(f"delphi.{name}")
        stub.__path__ = [f"{root}/{name.replace('.', '/')}"]
        for kind in ("LatentRecord", "ActivatingExample", "NonActivatingExample"):
            setattr(stub, kind, type(kind, (), {}))
        monkeypatch.setitem(sys.modules, stub.__name__, stub)
    own = ("scorers.classifier.detection", "scorers.classifier.sample", "clients.client")
    return [importlib.import_module(f"delphi.{name}") for name in own]


def test_counts_are_those_of_delphi(peer: Any) -> None:
    detection, sample, client = peer
    random = np.random.default_rng(0)
    kinds = random.permutation(np.repeat(["active", "hard", "random"], [50, 25, 25]))
    answers = [f"So: {random.integers(2, size=5).tolist()}, [1]." for _ in range(20)]
    answers[3], answers[8], answers[12] = "[1, 0]", "I would rather not", "[true, 0, 1, 1, false]"
    given = iter(answers)

    class Canned:
        async def generate(self, *_: Any, **__: Any) -> Any:
            return client.Response(text=next(given))

    class Scorer(detection.DetectionScorer):  # type: ignore[misc]
        def _prepare(self, _: Any) -> Any:
            made = (
                sample.ClassifierOutput([], [], 0, activating=kind == "active") for kind in kinds
            )
            return [sample.Sample("", one) for one in made]

    scorer = Scorer(Canned(), n_examples_shown=5)
    scorer.rng = SimpleNamespace(shuffle=list)
    theirs = scorer.call_sync(SimpleNamespace(explanation="")).score
    ours = score(
        kinds, *map(np.concatenate, zip(*[parse(answer(a), 5) for a in answers], strict=True))
    )
    assert ours["missing"] == sum(one.correct is None for one in theirs) == 10
    for kind in ("active", "hard", "random"):
        right = [x.correct for x, k in zip(theirs, kinds, strict=True) if k == kind]
        assert ours[kind] == pytest.approx(np.mean([x for x in right if x is not None]))


def test_a_puzzle_is_solved_by_pointing_at_the_foreign_passage_alone(items: list[Item]) -> None:
    nan = [math.nan] * 5
    answers = np.array([0, 0, 1, 0, 0, *nan, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0])
    found = score_puzzles(np.array([2, 0, 0, 0]), answers)
    assert found == pytest.approx(
        {"value": 2 / 3, "n": 3, "missing": 1, "strict": 2 / 4, "low": 0.2077, "high": 0.9385},
        abs=1e-4,
    )
    assert math.isnan(score_puzzles(np.zeros(1, int), np.array(nan))["value"])
    for item in items:
        passages = puzzles(item, [item] * 4)
        known = dict(zip(item.marked, item.kinds, strict=True))
        for band, place in enumerate(item.places):
            five = [known[passage] for passage in passages[5 * band : 5 * band + 5]]
            assert five.pop(place) != "active"
            assert five == ["active"] * 4
    mixed = puzzles(items[0], items[1:5])
    assert mixed[items[0].places[0]] == items[0].foreign[0]
    assert items[1].bands[0][0] in mixed[:5]


def test_a_run_scores_exactly_through_faults_and_a_second_sends_nothing(
    items: list[Item], tmp_path: Path
) -> None:
    with serving() as server:
        server.faults = ["429", "500", "cut", "503"]
        asked = Endpoint(server.url, "rule", tmp_path, KEY, (1.0, 2.0), max_tokens=99)
        found = explain(items, asked, seed=0)
        assert server.keys == {f"Bearer {KEY}"}
        assert len(server.requests) == estimate(items)[0] == 8 * 101
        assert server.requests[0].keys() == {"model", "messages", "max_tokens"}
        assert asked.spent == pytest.approx(8 * 101 * (100 * 1.0 + 10 * 2.0) / 1e6)
        server.requests.clear()
        again = Endpoint(server.url, "rule", tmp_path, "", (1.0, 2.0), budget=0.0, max_tokens=99)
        assert explain(items, again, seed=0) == found
        assert server.requests == []
    names = {item.latent: found[str(item.latent)]["text"] for item in items}
    for item in items:
        own = found[str(item.latent)]
        word = names[item.latent].removeprefix("has ")
        assert word in (f"w{2 * item.latent}", f"w{2 * item.latent + 1}")

        def holds(texts: list[str], *words: str) -> np.ndarray:
            return np.array([any(re.search(rf"\b{w}\b", t) for w in words) for t in texts])

        marked = [" ".join(re.findall("<<(.*?)>>", text)) for text in item.marked]
        shuffled = own["controls"]["shuffled"]
        fits = [n for n in names.values() if same(shuffled, item, holds(item.plain, n[4:]))]
        assert set(fits) - {names[item.latent]}
        assert same(own["detection"], item, holds(item.plain, word))
        assert same(own["fuzzing"], item, holds(marked, word))
        at = items.index(item)
        others = [items[(at + i) % 8] for i in range(1, 5)]
        for given, sources in ((own["intruder"], [item] * 4), (own["controls"]["mixed"], others)):
            passages = puzzles(item, sources)
            said = [by_the_rule("", "\n".join(passages[i : i + 5])) for i in range(0, 50, 5)]
            right = [json.loads(s).index(1) == p for s, p in zip(said, item.places, strict=True)]
            assert given["value"] == given["strict"] == np.mean(right)
        main = re.findall(r"w\d+", item.words)
        assert {f"w{2 * item.latent}", f"w{2 * item.latent + 1}"} == set(main)
        assert same(own["controls"]["tokens"], item, holds(item.plain, *main))
    values = {value.metric: value for value in over_latents(found, "x", found)}
    of = {n: [r["detection"]["value"] for r in found.values()] for n in ("detection",)}["detection"]
    less = [r["detection"]["value"] - r["controls"]["tokens"]["value"] for r in found.values()]
    assert values["detection"].value == pytest.approx(np.mean(of))
    assert values["detection - tokens"].value == pytest.approx(np.mean(less))
    assert values["detection - control"].value == 0.0
    assert values["intruder - mixed"].low > 0.1
    assert values["detection"].low < values["detection"].value < values["detection"].high
    assert missing_share(found) == 0.0
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8 * 101
    assert not any(KEY.encode() in content for content in files)


def same(found: dict[str, Any], item: Item, said: np.ndarray) -> bool:
    active, kinds = item.kinds == "active", ("active", "hard", "random")
    expected = [(said == active)[item.kinds == kind].mean() for kind in kinds]
    balanced = ((said == active)[active].mean() + (said == active)[~active].mean()) / 2
    own = [found[name] for name in (*kinds, "value")]
    return own == pytest.approx([*expected, balanced])


def test_unreadable_and_hostile_answers_are_counted_and_stay_text(
    items: list[Item], tmp_path: Path
) -> None:
    def answered(system: str, user: str) -> str:
        if "[EXPLANATION]:" in system:
            return "[EXPLANATION]: old [EXPLANATION]:\n <script>\x1b[31m" + "long " * 999
        return "[1, 0]" if "Passage 5" in user and user.count("w7 ") else "[1, 1, 1, 1, 1]"

    with serving() as server:
        server.answer = answered
        found = explain(items[:1], Endpoint(server.url, "m", tmp_path), seed=0)
        (record,) = found.values()
        assert record["text"].startswith(r"<script>\x1b[31mlong long")
        assert len(record["text"]) == 512
        assert record["controls"].keys() == {"tokens"}, "there is no other latent to shuffle with"
        missing = record["detection"]["missing"]
        assert missing % 5 == 0
        assert 0 < missing < 100
        assert 0 < missing_share(found) < 1
        server.answer = lambda *_: "I would rather not"
        silent = explain(items[:2], Endpoint(server.url, "n", tmp_path), seed=0)
    assert missing_share(silent) == 1.0
    assert math.isnan(over_latents(silent, "x")[0].value)


@pytest.mark.parametrize(
    ("options", "fault", "expected"),
    [
        ({"base_url": "http://example.org/v1"}, "", "example.org is not this machine; use https"),
        ({"base_url": "http://127.0.0.1@example.org/v1"}, "", "expected a base_url such as"),
        ({"base_url": "ftp://127.0.0.1"}, "", "expected a base_url such as https://HOST/v1"),
        ({"key": f"{KEY}\nX: y"}, "", "the key has characters that no header may have"),
        ({"base_url": "http://localhost:9/v1"}, "", "nothing answers at localhost:9"),
        ({}, "401", "explain: 401 from 127.0.0.1:"), ({}, "307", "explain: 307 from 127.0.0.1:"),
        ({}, "500", "explain: 500 from 127.0.0.1:"), ({}, "cut", "6 times; run again to resume"),
    ],
)  # fmt: skip
def test_what_fails_is_said_without_the_key(
    items: list[Item], tmp_path: Path, options: dict[str, Any], fault: str, expected: str
) -> None:
    with serving() as server:
        server.faults = [fault] * 99 if fault else []
        given = {"base_url": server.url, "key": KEY, **options}
        with pytest.raises(InputError, match=re.escape(expected)) as raised:
            explain(items[:3], Endpoint(model="m", folder=tmp_path, **given), seed=0)
    assert KEY not in f"{raised.value!r} {raised.value.__cause__!r}"
    assert not server.requests


def test_an_answer_that_is_no_text_is_not_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("palinka.evaluation.endpoint.FIRST_WAIT", 0.0)
    with serving() as server:
        server.answer = lambda *_: [{"type": "text", "text": "[1]"}]  # type: ignore[assignment, return-value]
        with pytest.raises(InputError, match=r"no whole answer \(TypeError\)"):
            Endpoint(server.url, "m", tmp_path).ask("Decide.", "Passage 1: x")
    assert not [*tmp_path.rglob("*.json")]


@pytest.mark.parametrize("key", [KEY, 'sk-"never/on\\disk'])
def test_a_key_that_the_server_repeats_is_not_kept(key: str, tmp_path: Path) -> None:
    with serving() as server:
        server.answer = lambda *_: f"[1] by {key}"
        answer = Endpoint(server.url, "m", tmp_path, key).ask("Decide.", "Passage 1: x")
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert answer["message"]["content"] == "[1] by ***"
    assert "never" not in file.read_text().replace(f'"echo": "{KEY}"', "")


def test_retries_wait_as_long_as_the_server_says(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 1.0)
    now = 1_800_000_000.0
    monkeypatch.setattr(client, "time", SimpleNamespace(time=lambda: now))
    date = formatdate(now + 30, usegmt=True)
    for after, expected in (
        ("7", [7.0] * 5), ("999", [60.0] * 5), (date, [30.0] * 5), ("soon", [1.0, 2, 4, 8, 16]),
    ):  # fmt: skip
        waits = list[float]()
        with serving() as server:
            server.faults, server.retry_after = ["503"] * 6, after
            asked = Endpoint(server.url, "m", tmp_path)
            monkeypatch.setattr(asked._stopped, "wait", waits.append)
            with pytest.raises(InputError, match=r"503 from 127\.0\.0\.1:\d+ 6 times"):
                asked.ask("Decide.", "Passage 1: x")
        assert waits == expected


def test_a_run_that_stops_resumes(items: list[Item], tmp_path: Path) -> None:
    with serving() as server:
        given = {"folder": tmp_path, "prices": (1.0, 0.0)}
        with pytest.raises(InputError, match=r"reached after \d of 3 latents; run again"):
            explain(items[:3], Endpoint(server.url, "m", budget=0.02, **given), seed=0)
        sent = len(server.requests)
        explain(items[:3], Endpoint(server.url, "m", **given), seed=0)
        bodies = [json.dumps(request) for request in server.requests]
    assert 0 < sent <= 200
    assert len(set(bodies)) == len(bodies) == estimate(items[:3])[0]
