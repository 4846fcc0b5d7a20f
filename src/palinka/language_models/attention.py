"""Attention patterns and scores, read and replaced through the attention interface."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.language_models.sites import EverythingRead, Sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from palinka.language_models.model import LanguageModel, Tokens

What = Literal["pattern", "scores"]
# From a pattern or scores, `(texts, heads, queries, keys)`, to what takes their place, or None.
Act = Callable[[Tensor], Tensor | None]

NAME = "palinka_heads"
# By attention module, in the order in which they act.
_acts: WeakKeyDictionary[nn.Module, list[tuple[What, Act]]] = WeakKeyDictionary()


def _pattern(module: nn.Module, scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of scores where an additive mask is 0, after all that act on either."""
    masked, acts = mask < 0, _acts.get(module, ())
    for what, act in acts:
        if what == "scores" and (new := act(scores.masked_fill(masked, -torch.inf))) is not None:
            scores = new
    # A query in padding on the left has no key at all: its softmax of -inf would be NaN.
    scores = scores.masked_fill(masked, torch.finfo(scores.dtype).min)
    # In float32 at least, as most families have it; GPT-Neo's scores are float32 in any dtype.
    dtype = torch.promote_types(mask.dtype, torch.float32)
    pattern = scores.softmax(-1, dtype=dtype)
    for what, act in acts:
        if what == "pattern" and (new := act(pattern)) is not None:
            pattern = new
    return pattern


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, *,
    scaling: float, softcap: float | None = None, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The eager attention of every family that takes its attention from the interface."""
    if (shared := query.shape[1] // key.shape[1]) > 1:  # query heads that read one key-value head
        key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    if getattr(module, "reorder_and_upcast_attn", False):  # of GPT-2, otherwise only under eager
        query, key = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key))
    scores = query @ key.mT * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    pattern = _pattern(module, scores, attention_mask).to(value.dtype)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _attend_gpt_neo(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """GPT-Neo's own attention: without a scale, in float32, in local windows in some blocks."""
    scores = query.to(torch.float32) @ key.to(torch.float32).mT
    queries, keys = scores.shape[-2:]
    window = module.bias[:, :, keys - queries : keys, :keys]
    mask = attention_mask.masked_fill(~window, -torch.inf)
    pattern = _pattern(module, scores, mask).to(value.dtype)
    return pattern @ value, pattern


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    # Without a mask function of this name there would be no mask: attention to later tokens.
    AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def attending(
    model: "PreTrainedModel", taps: Sequence[tuple[nn.Module, What, Act]] = ()
) -> Iterator[None]:
    """Run attention as palinka's function in the body of the `with`; then the former is back.

    `taps` are attention modules, and what acts on the pattern or the scores of each. It computes
    what transformers' eager attention does, whose rounding differs from that of `sdpa`: give no
    taps for what is to be compared with patterns that are replaced. No other thread may run the
    model meanwhile.
    """
    before = model.config._attn_implementation
    if before not in (NAME, "sdpa", "eager"):
        fault = f"attention {before!r} gives no patterns"
        raise InputError(f"{fault}; load the model with sdpa or eager")
    _register()
    with ExitStack() as undo:
        if model.config.model_type != "gpt_neo":  # which does not take it from the interface
            undo.callback(model.set_attn_implementation, before)
            model.set_attn_implementation(NAME)
        for module, what, act in taps:
            if hasattr(module, "_attn") and "_attn" not in vars(module):
                undo.callback(delattr, module, "_attn")
                setattr(module, "_attn", partial(_attend_gpt_neo, module))  # noqa: B010
            acts = _acts.setdefault(module, [])
            undo.callback(acts.remove, (what, act))
            acts.append((what, act))
        yield


def attention_module(model: "PreTrainedModel", sites: Sites, layer: int) -> nn.Module:
    """The attention of a block; an `InputError` for other blocks and other families."""
    if not sites.taps:
        fault = f"attention patterns of {model.config.model_type} cannot be read or replaced"
        raise InputError(f"{fault}; outputs of its modules can")
    if not 0 <= layer < sites.layers:
        raise InputError(f"block {layer}; the model has blocks 0 to {sites.layers - 1}")
    projection = sites.taps[f"blocks.{layer}.attn.q"].module
    return model.get_submodule(projection.rpartition(".")[0])


@torch.no_grad()
def visit_attention(
    lm: "LanguageModel", tokens: "Tokens", visit: Callable[[slice, int, Tensor], None],
    layers: int | Sequence[int] | None = None, what: What = "pattern", batch_size: int = 32,
) -> None:  # fmt: skip
    """Call a function with the attention of each block, in passes over batches of texts.

    It is given the slice of texts, the block, and its `(texts, heads, queries, keys)`, as long as
    the longest text of the batch; 0 for queries in padding. A pass ends after the last of the
    blocks; one block's attention is held at a time. Others are as in `LanguageModel.attention`.
    """
    if what not in get_args(What):
        raise InputError(f"what is {what!r}; expected pattern or scores")
    every = range(lm.spec.sites.layers) if layers is None else layers
    wanted = sorted({every} if isinstance(every, int) else {*every})
    batch, mask = slice(0), tokens.mask

    def act(layer: int, values: Tensor) -> None:
        padding = mask[:, None, :, None] == 0
        visit(batch, layer, values.masked_fill(padding, 0.0) if padding.any() else values)
        if layer == wanted[-1]:
            raise EverythingRead

    modules = [attention_module(lm.model, lm.spec.sites, layer) for layer in wanted]
    taps = zip(modules, wanted, strict=True)
    with attending(lm.model, [(module, what, partial(act, layer)) for module, layer in taps]):
        for start in range(0, len(tokens.ids), batch_size):
            batch = slice(start, min(start + batch_size, len(tokens.ids)))
            part = (batch, slice(int(tokens.lengths[batch].max())))
            ids, mask = (x[part].to(lm.device) for x in (tokens.ids, tokens.mask))
            with suppress(EverythingRead):
                lm.model(input_ids=ids, attention_mask=mask, use_cache=False)
