from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from palinka.errors import InputError
from palinka.language_models import LanguageModel, Tokens

IDS = torch.tensor([[5, 77, 901, 4000, 12, 3], [8, 1, 2, 600, 700, 800]])
KINDS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.pre", "mlp.post", "mlp.out", "resid")
EVERY_KIND = ["hidden.0", "hidden.1", "hidden.3", *(f"blocks.1.{kind}" for kind in KINDS)]


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_padding_never_changes_an_answer(any_model: LanguageModel, texts: list[str]) -> None:
    sites = list(any_model.sites)
    together, logits = any_model.read(texts, sites), any_model.logits(texts)
    for row, text in enumerate(texts):
        alone = any_model.read([text], sites)
        length = alone.tokens.shape[1]
        assert torch.equal(together.tokens[row, :length], alone.tokens[0])
        for site in sites:
            values = together[site][row]
            assert relative_difference(values[:length], alone[site][0]) < 1e-5, site
            assert not values[length:].any()
        assert relative_difference(logits[row, :length], any_model.logits([text])[0]) < 1e-5
        assert not logits[row, length:].any()


def test_batches_of_any_size_give_the_same(gpt2: LanguageModel, texts: list[str]) -> None:
    whole = gpt2.read(texts, ["hidden.3", "blocks.0.attn.k"])
    assert repr(whole).startswith(f"Activations(hidden.3: {tuple(whole['hidden.3'].shape)}, ")
    assert repr(gpt2.tokenize(["Yes"])) == "Tokens(1 texts of [1] tokens)"
    assert repr(gpt2).endswith(f"float32 on cpu, {len(gpt2.sites)} sites)")
    for batch_size in (1, 3):
        parts = gpt2.read(texts, list(whole), batch_size)
        assert torch.equal(parts.mask, whole.mask)
        for site in whole:
            torch.testing.assert_close(parts[site], whole[site])


def test_texts_tokens_ids_and_any_name_of_a_site_give_the_same(gpt2: LanguageModel) -> None:
    names = ["transformer.h.1.mlp.c_fc", "blocks.middle.mlp.pre", "blocks.1.mlp.pre"]
    acts = gpt2.read(["I saw him."], names)
    assert torch.equal(gpt2.read("I saw him.", names[0])[names[0]], acts[names[0]])
    with pytest.raises(InputError, match=r"'hidden\.1' was not read, only transformer.* read\(si"):
        acts["hidden.1"]
    assert list(acts) == names
    assert all(torch.equal(acts[name], acts[names[0]]) for name in names)
    assert acts.tokens.shape == acts.mask.shape == acts[names[0]].shape[:2]
    tokens = gpt2.tokenize(["I saw him."])
    for read in (gpt2.read(tokens, names), gpt2.read_contexts(tokens.ids, names)):
        assert all(torch.equal(read[name], acts[name]) for name in names)


def test_a_module_path_gives_one_vector_per_token(gpt2: LanguageModel) -> None:
    acts = gpt2.read(IDS, ["transformer.wpe", "transformer.h.0.attn"])
    assert acts["transformer.h.0.attn"].shape == (2, 6, 24)
    positions = gpt2.model.get_parameter("transformer.wpe.weight")[:6]
    assert torch.equal(acts["transformer.wpe"], positions.expand(2, -1, -1))


@pytest.mark.parametrize(
    ("site", "last"),
    [
        ("hidden.0", "transformer.h.0"),
        ("hidden.1", "transformer.h.0.mlp.dropout"),
        ("blocks.0.attn.k", "transformer.h.0.attn.c_attn"),
        ("blocks.1.mlp.pre", "transformer.h.1.mlp.c_fc"),
        ("blocks.1.mlp.post", "transformer.h.1.mlp.c_proj"),
        ("hidden.3", "transformer.ln_f"),
    ],
)
def test_nothing_is_computed_after_the_last_site(gpt2: LanguageModel, site: str, last: str) -> None:
    calls: list[object] = []
    with register_module_forward_pre_hook(lambda module, _: calls.append(module)):
        gpt2.read(IDS, [site, "hidden.0"])
    assert calls[-1] is gpt2.model.get_submodule(last)
    assert gpt2.model.lm_head not in calls


def test_no_graph_is_kept_and_the_result_can_be_trained_on(gpt2: LanguageModel) -> None:
    acts = gpt2.read(IDS, ["blocks.1.mlp.post"])["blocks.1.mlp.post"]
    assert not acts.requires_grad
    assert not gpt2.logits(IDS).requires_grad
    (acts * torch.ones(acts.shape[-1], requires_grad=True)).sum().backward()
    assert not any(parameter.requires_grad for parameter in gpt2.model.parameters())


@pytest.mark.parametrize(
    ("texts", "sites", "message"),
    [
        (["word " * 80], ["hidden.1"], r"text 0 has \d+ tokens; a context has at most 64"),
        (torch.zeros(2, 65, dtype=torch.long), ["hidden.1"], "65 tokens; a context has at most 64"),
        ([], ["hidden.1"], "an empty list"),
        (["fine", ""], ["hidden.1"], r"texts \[1\] without a token"),
        (["text"], [], "sites is an empty list; give at least one"),
        (["text"], ["hidden.9"], "no site 'hidden.9'"),
        (torch.tensor([[8192]]), ["hidden.1"], "0 to 8191"),
        (torch.tensor([1, 2]), ["hidden.1"], r"give both as \(texts, tokens\)"),
    ],
)
def test_bad_input_is_rejected(
    gpt2: LanguageModel, texts: Sequence[str] | Tensor, sites: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        gpt2.read(texts, sites)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("site", EVERY_KIND)
def test_a_site_is_replaced_and_read_as_replaced(any_model: LanguageModel, site: str) -> None:
    clean, before = any_model.logits(IDS), any_model.read(IDS, [site])[site]
    with any_model.replaced(site, lambda x: x):
        assert torch.equal(any_model.logits(IDS), clean)
    with any_model.replaced(site, lambda x: 0 * x):
        assert not torch.allclose(any_model.logits(IDS), clean)
    with any_model.replaced(site, lambda x: x + 1), any_model.replaced(site, lambda x: 2 * x):
        torch.testing.assert_close(any_model.read(IDS, [site])[site], 2 * (before + 1))
    assert torch.equal(any_model.logits(IDS), clean)


def test_a_replacement_changes_only_what_follows(any_model: LanguageModel) -> None:
    sites = ["blocks.1.attn.k", "blocks.1.attn.v", "hidden.1", "hidden.2"]
    clean = any_model.read(IDS, sites)
    with any_model.replaced("blocks.1.attn.v", lambda x: x + 1):
        changed = any_model.read(IDS, sites)
    same = {site: torch.allclose(changed[site], clean[site]) for site in sites}
    assert list(same.values()) == [True, False, True, False]


def test_a_pass_begins_with_states(any_model: LanguageModel, texts: list[str]) -> None:
    ids = torch.cat([any_model.tokenize(texts[i]).ids[:, :5] for i in (0, 2)])
    last = any_model.spec.sites.layers - 1
    for site in ("hidden.0", "hidden.2", "blocks.0.resid", f"blocks.{last}.resid"):
        logits = any_model.run_from(site, any_model.read(ids, site)[site])
        torch.testing.assert_close(logits, any_model.logits(ids))
    states = any_model.read(ids, "hidden.1")["hidden.1"]
    with any_model.replaced("blocks.1.mlp.out", torch.zeros_like):
        torch.testing.assert_close(any_model.run_from("hidden.1", states), any_model.logits(ids))
    with pytest.raises(InputError, match=r"no pass begins at hidden\.3; give hidden"):
        any_model.run_from("hidden.3", states)
    with pytest.raises(InputError, match=r"shape \(5, \d+\); expected \(texts, tokens, "):
        any_model.run_from("hidden.1", states[0])


def test_zero_at_the_mlp_takes_exactly_its_contribution_away(gpt2: LanguageModel) -> None:
    resid, mlp = gpt2.read(IDS, ["blocks.1.resid", "blocks.1.mlp.out"]).values()
    with gpt2.replaced("blocks.1.mlp.out", torch.zeros_like):
        (without,) = gpt2.read(IDS, ["blocks.1.resid"]).values()
    torch.testing.assert_close(without, resid - mlp)


@pytest.mark.parametrize("path", ["transformer", "transformer.h.1.attn"])
def test_the_first_tensor_of_a_larger_output_is_replaced(gpt2: LanguageModel, path: str) -> None:
    clean = gpt2.read(IDS, [path])[path]
    with gpt2.replaced(path, lambda x: x + 1):
        assert torch.equal(gpt2.read(IDS, [path])[path], clean + 1)
        changed = gpt2.logits(IDS)
    assert not torch.allclose(changed, gpt2.logits(IDS))


def test_hidden_states_of_transformers_see_the_replacement(gpt2: LanguageModel) -> None:
    gpt2.model(IDS, output_hidden_states=True)  # leaves its own hooks behind
    with gpt2.replaced("hidden.0", lambda x: x + 1), gpt2.replaced("hidden.2", lambda x: x * 0):
        states = gpt2.model(IDS, output_hidden_states=True).hidden_states
        acts = gpt2.read(IDS, ["hidden.0"])
    assert torch.equal(states[0], acts["hidden.0"])
    assert torch.equal(states[2], torch.zeros_like(states[2]))


def test_a_replacement_works_within_generate(any_model: LanguageModel) -> None:
    with any_model.replaced(list(any_model.sites)[-1], torch.zeros_like):
        # All logits are equal then, or are the bias of the head: the same token for ever.
        continued = any_model.generate(IDS, max_new_tokens=4, do_sample=False)[:, 6:]
    assert (continued == continued[0, 0]).all()
    free = any_model.generate(IDS, max_new_tokens=4, do_sample=False)
    with any_model.replaced("blocks.0.attn.v", lambda x: x):
        same = any_model.generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(free, same)


def test_generate_pads_on_the_left(any_model: LanguageModel, texts: list[str]) -> None:
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    together = any_model.generate(texts, **options)[:, -5:]
    for row, text in zip(together, texts, strict=True):
        assert torch.equal(row, any_model.generate(text, **options)[0, -5:])


def test_a_name_in_place_of_a_model_is_rejected() -> None:
    with pytest.raises(InputError, match=r"with LanguageModel\.from_pretrained\('mini"):
        LanguageModel("mini")  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_model_is_computed_in_the_given_dtype(dtype: str, folders: dict[str, object]) -> None:
    model = LanguageModel.from_pretrained(str(folders["gpt2"]), dtype=dtype, device="cpu")
    assert model.read(IDS, ["hidden.3"])["hidden.3"].dtype == getattr(torch, dtype)
    with model.replaced("blocks.1.mlp.post", lambda x: x.float()):
        assert model.logits(IDS).dtype == getattr(torch, dtype)


def test_the_mini_model_predicts_english_in_float32() -> None:
    mini = LanguageModel.from_pretrained(device="cpu")
    assert (mini.spec.name, mini.spec.sites.layers, mini.context_length) == ("mini", 6, 256)
    (acts,) = mini.read(["I saw him at the market."], ["blocks.middle.mlp.pre"]).values()
    assert (acts.shape, acts.dtype) == ((1, 7, 512), torch.float32)
    tokens = mini.tokenize(["The river was wide, and he looked at the water for a long time."])
    logits = mini.logits(tokens)
    assert torch.nn.functional.cross_entropy(logits[0, :-1], tokens.ids[0, 1:]) < 5


def test_texts_are_padded_on_the_right_without_a_padding_token(gpt2: LanguageModel) -> None:
    tokens = Tokens.of([[1, 2, 3], [4]])
    assert tokens.ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert tokens.mask.tolist() == [[1, 1, 1], [1, 0, 0]]

    tokenizer, texts = gpt2.tokenizer, ["I saw him.", "The river", "x"]
    assert tokenizer.pad_token is None
    tokens = gpt2.tokenize(texts)
    for text, ids, mask in zip(texts, tokens.ids, tokens.mask, strict=True):
        assert ids[mask.bool()].tolist() == tokenizer(text)["input_ids"]
    assert len(tokenizer) == 8192
    expected = gpt2.generate(texts, max_new_tokens=2, do_sample=False)
    assert int(expected[1, 0]) == tokenizer.eos_token_id
    try:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # beyond the model's embedding
        assert tokenizer.pad_token_id == 8192
        assert torch.equal(gpt2.generate(texts, max_new_tokens=2, do_sample=False), expected)
    finally:
        tokenizer.pad_token = None


@pytest.mark.parametrize("mask", [[], [1, 1, 1], [[1, 1]], [[0, 1, 1]], [[1, 0, 1]], [[0, 0, 0]]])
def test_a_mask_that_is_not_right_padded_is_rejected(mask: list[int]) -> None:
    with pytest.raises(InputError, match="padded on the right only"):
        Tokens(torch.zeros(1, 3, dtype=torch.long), torch.tensor(mask, dtype=torch.long))
