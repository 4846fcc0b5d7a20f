from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from palinka.errors import InputError
from palinka.interventions import heads
from palinka.interventions.heads import Arrays, head_sums
from palinka.language_models import LanguageModel
from palinka.language_models.model import Tokens

Sums = dict[str, Arrays]
TEXTS = [
    "The cat sat on the mat and the dog sat on the mat.",
    "He gave her the letter.",
    "One two three, one two three, one two three and four.",
]
Matrix = NDArray[np.float64]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.from_pretrained("mini", device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def found(lm: LanguageModel) -> Sums:
    return head_sums(lm, lm.tokenize(TEXTS), length=6, sequences=3, seed=4)


def scores(a: Matrix, ids: Sequence[int]) -> dict[str, float]:
    """Every score of one pattern on a text, as the definitions have it."""
    n = len(ids)
    entropies, steps, detected = [], 0.0, {"previous": 0.0, "duplicate": 0.0, "induction": 0.0}
    weights, distances, have_copy = [], [], 0
    for q in range(n):
        entropies.append(-sum(x * np.log(x) for x in a[q, : q + 1] if x > 0))
        have_copy += any(ids[p] == ids[q] for p in range(q))
        for k in range(q + 1):
            weights.append(a[q, k])
            distances.append(q - k)
            if k == q - 1:
                detected["previous"] += a[q, k]
            if k < q and ids[k] == ids[q]:
                detected["duplicate"] += a[q, k]
                detected["induction"] += a[q, k + 1]
                steps += a[q, k + 1] if a[q, k + 1] >= 0.01 else 0.0
    mean = np.average(distances, weights=weights)
    return {
        "previous_token": np.mean([a[q, q - 1] for q in range(1, n)]),
        "self": np.mean([a[q, q] for q in range(n)]),
        "sink": np.mean([a[q, 0] for q in range(1, n)]),
        "entropy": np.mean(entropies),
        "entropy_normalized": np.mean([entropies[q] / np.log(q + 1) for q in range(1, n)]),
        "distance": mean,
        "distance_squared": np.average(np.square(distances), weights=weights),
        "induction_text": steps / have_copy if have_copy else np.nan,
        **{f"detect_{name}": total / a.sum() for name, total in detected.items()},
    }


def score_of(found: Sums, kind: str, name: str) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        ratio: NDArray[np.float64] = found[kind][name] / found["counts"][name]
    return ratio


def test_scores_of_texts_are_those_of_plain_loops(lm: LanguageModel, found: Sums) -> None:
    tokens, patterns = lm.tokenize(TEXTS), lm.attention(TEXTS)
    assert tokens.mask.sum(1).min() < tokens.ids.shape[1]  # one of them is padded
    for text, length in enumerate(tokens.lengths.tolist()):
        ids = tokens.ids[text, :length].tolist()
        for layer, pattern in patterns.items():
            for head, a in enumerate(pattern[text, :, :length, :length].numpy()):
                for name, expected in scores(a, ids).items():
                    value = score_of(found, "sums", name)[layer, head, text]
                    np.testing.assert_allclose(value, expected, rtol=1e-9, err_msg=name)
        alike = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
        for name, expected in scores(alike, ids).items():
            value = score_of(found, "reference", name)[text]
            np.testing.assert_allclose(value, expected, rtol=1e-9, err_msg=name)
    assert found["counts"]["induction_text"][1] == 0


def test_scores_of_repeated_random_tokens(lm: LanguageModel, found: Sums) -> None:
    known = [i for i in range(len(lm.tokenizer)) if i not in lm.tokenizer.all_special_ids]
    assert len(known) < len(lm.tokenizer)
    first, other = np.random.default_rng(4).choice(known, (2, 3, 6))
    for kind, second in (("sums", first), ("reference", other)):
        patterns = lm.attention(torch.from_numpy(np.concatenate([first, second], axis=1)))
        for layer, pattern in patterns.items():
            a = pattern.numpy()
            for name, shift in (("duplicate_token", 6), ("induction", 5)):
                expected = np.mean([a[:, :, q, q - shift] for q in range(6, 12)], axis=0).T
                value = score_of(found, kind, name)[layer]
                np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_sums_do_not_depend_on_the_batch(
    lm: LanguageModel, found: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "PATTERN_ELEMENTS", 1)
    one_by_one = head_sums(lm, lm.tokenize(TEXTS), length=6, sequences=3, seed=4)
    for kind in ("sums", "counts", "reference"):
        for name, expected in found[kind].items():
            value = one_by_one[kind][name]
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


def test_the_global_generator_and_the_attention_are_left_alone(lm: LanguageModel) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr] # noqa: NPY002
    head_sums(lm, lm.tokenize(TEXTS), length=3, sequences=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index,union-attr] # noqa: NPY002
    assert lm.model.config._attn_implementation == "sdpa"


def test_texts_that_have_no_scores_are_rejected(lm: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"^a text has 1 token; scores of heads need at least 2"):
        head_sums(lm, Tokens.of([[5, 6], [7]]))
    with pytest.raises(InputError, match=r"^129 random tokens, twice: .* at most 256 tokens"):
        head_sums(lm, lm.tokenize(TEXTS), length=129)


def strongest(found: Sums, name: str) -> tuple[tuple[int, ...], float]:
    means = score_of(found, "sums", name).mean(axis=-1)
    return tuple(map(int, np.unravel_index(means.argmax(), means.shape))), means.max()


def test_the_mini_model_has_no_induction_head(lm: LanguageModel) -> None:
    found = head_sums(lm, lm.tokenize(TEXTS), sequences=8)
    assert strongest(found, "induction")[1] < 0.15
    assert strongest(found, "previous_token")[1] > 0.3


@pytest.mark.slow
@pytest.mark.real_data
def test_known_heads_of_smollm2_are_found(real_data: Path) -> None:
    pytest.importorskip("gguf")
    files = list((real_data / "models" / "smollm2-135m-instruct-gguf").glob("*.gguf"))
    if not files:
        pytest.skip("PALINKA_DATA has no SmolLM2")
    lm = LanguageModel.from_pretrained(str(files[0]), device="cpu")
    random = np.random.default_rng(0).integers(1000, 40000, (4, 60)).tolist()
    found = head_sums(lm, Tokens.of(random), sequences=4)
    # As TransformerLens scores them: previous token .91, induction .89.
    head, score = strongest(found, "previous_token")
    assert (head, score > 0.85) == ((16, 0), True)
    head, score = strongest(found, "induction")
    assert (head, score > 0.85) == ((18, 6), True)
    apart = found["sums"]["induction"][18, 6] - found["reference"]["induction"][18, 6]
    assert (apart > 0.8 * 50).all()


@pytest.mark.parametrize("name", ["previous", "duplicate", "induction"])
def test_detect_head_of_transformer_lens_has_the_same_scores(name: str) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.head_detector import detect_head
    from transformer_lens.model_bridge import TransformerBridge

    lm = LanguageModel.from_pretrained("mini", device="cpu")
    peer = LanguageModel.from_pretrained("mini", device="cpu")  # which it changes
    path, options = str(peer.spec.name), {"hf_model": peer.model, "tokenizer": peer.tokenizer}
    bridge: Any = TransformerBridge.boot_transformers(path, device="cpu", **options)
    kind: Any = f"{name}{'_token' * (name != 'induction')}_head"
    tokens = [bridge.to_tokens(text)[0].tolist() for text in TEXTS]
    found = head_sums(lm, Tokens.of(tokens), length=3, sequences=2)
    expected = detect_head(bridge, TEXTS, kind).numpy()
    ours = score_of(found, "sums", f"detect_{name}").mean(axis=-1)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
