"""Sites by name in every model family, and the hooks that read and replace them."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from palinka.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TUPLES = {"gpt_neo"}  # families whose blocks return more than the residual stream
_HEAD = re.compile(r"(blocks\.(\d+)\.attn)\.(q|k|v|z|result)\.(\d+)")


@dataclass(frozen=True)
class Tap:
    """The tensor that a module returns or is given, or a part of it.

    A part is the span of every group, where the tensor is `(…, groups · size)`: GPT-2's fused
    query, key and value lie side by side in one group, and GPT-NeoX has a group for each head.
    """

    module: str  # its path in the model, such as transformer.h.3.mlp.c_fc
    side: Literal["output", "input"] = "output"
    span: tuple[int, int] | None = None  # start and stop; None for the whole tensor
    groups: int = 1
    projected: bool = False  # the part times its rows of the module's weight; only to be read
    in_place: bool = False  # the residual stream itself, which the block adds to afterwards, too

    def take(self, whole: Tensor) -> Tensor:
        """The tapped part of the module's tensor, heads concatenated; a view where possible."""
        return whole if self.span is None else self._view(whole).flatten(-2)

    def put(self, whole: Tensor, tapped: Tensor) -> Tensor:
        """The module's tensor with the tapped part replaced."""
        if self.in_place:
            return whole.copy_(tapped)
        if self.span is None:
            return tapped
        changed = whole.clone()
        view = self._view(changed)
        view.copy_(tapped.reshape(view.shape))
        return changed

    def _view(self, whole: Tensor) -> Tensor:
        start, stop = self.span or (0, None)
        return torch.unflatten(whole, -1, (self.groups, -1))[..., start:stop]


@dataclass(frozen=True)
class Heads:
    """Attention heads of every block."""

    count: int  # query heads
    shared: int  # key-value heads; query head h reads number h // (count / shared)
    size: int  # width of each


class Family(NamedTuple):
    """The module paths of one family; those after the final norm are relative to a block."""

    embed: str  # token embeddings
    blocks: str
    final_norm: str
    mlp_first: str  # the gate where the MLP is gated
    mlp_second: str
    attention_out: str
    qkv: str  # with {} for q, k or v, unless one module computes all of them:
    fused: Literal["side by side", "by head"] | None = None
    mid: str | None = None  # given the stream between attention and MLP; None if they are parallel
    attention_norm: str | None = None  # of what the attention adds to the stream
    mlp_norm: str | None = None


_LLAMA = Family(
    "model.embed_tokens", "model.layers", "model.norm", "mlp.gate_proj", "mlp.down_proj",
    "self_attn.o_proj", "self_attn.{}_proj", mid="post_attention_layernorm",
)  # fmt: skip
_GEMMA = _LLAMA._replace(
    mid="pre_feedforward_layernorm",
    attention_norm="post_attention_layernorm",
    mlp_norm="post_feedforward_layernorm",
)
FAMILIES = {
    "gpt2": Family(
        "transformer.wte", "transformer.h", "transformer.ln_f", "mlp.c_fc", "mlp.c_proj",
        "attn.c_proj", "attn.c_attn", "side by side", mid="ln_2",
    ),
    "gpt_neo": Family(
        "transformer.wte", "transformer.h", "transformer.ln_f", "mlp.c_fc", "mlp.c_proj",
        "attn.attention.out_proj", "attn.attention.{}_proj", mid="ln_2",
    ),
    "gpt_neox": Family(
        "gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm",
        "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "attention.dense", "attention.query_key_value",
        "by head", mid="post_attention_layernorm",
    ),
    "phi": Family(
        "model.embed_tokens", "model.layers", "model.final_layernorm", "mlp.fc1", "mlp.fc2",
        "self_attn.dense", "self_attn.{}_proj",
    ),
    "phi3": _LLAMA._replace(
        mlp_first="mlp.gate_up_proj", qkv="self_attn.qkv_proj", fused="side by side"
    ),
    "olmo2": _GEMMA._replace(mid="mlp"),  # its MLP is given the stream itself
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}  # fmt: skip


def heads_of(config: "PretrainedConfig") -> Heads:
    """Number and width of a model's attention heads."""
    count = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or count
    size = getattr(config, "head_dim", None) or config.hidden_size // count
    return Heads(count, shared, size)


def named_taps(config: "PretrainedConfig") -> dict[str, Tap]:
    """Every named site of a model, in the order of the forward pass; none for other families."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return {}
    heads = heads_of(config)
    parallel = family.mid is None or getattr(config, "use_parallel_residual", False)
    groups = heads.count if family.fused == "by head" else 1
    widths = [n * heads.size // groups for n in (heads.count, heads.shared, heads.shared)]
    # hidden_states[0] is what the first block is given (embeddings and positions), those
    # between are the blocks' outputs, and the last is what the final norm returns.
    taps = {"embed": Tap(family.embed), "hidden.0": Tap(f"{family.blocks}.0", side="input")}
    for index in range(config.num_hidden_layers):
        site, block = f"blocks.{index}", f"{family.blocks}.{index}"
        for part, name in enumerate("qkv"):
            span = (sum(widths[:part]), sum(widths[: part + 1])) if family.fused else None
            tap = Tap(f"{block}.{family.qkv.format(name)}", span=span, groups=groups)
            taps[f"{site}.attn.{name}"] = tap
        out = f"{block}.{family.attention_out}"
        taps[f"{site}.attn.z"] = Tap(out, side="input")
        taps[f"{site}.attn.out"] = Tap(out)
        norm = family.attention_norm
        taps[f"{site}.attn.write"] = Tap(f"{block}.{norm}" if norm else out)
        if not parallel:
            taps[f"{site}.resid_mid"] = Tap(f"{block}.{family.mid}", side="input", in_place=True)
        taps[f"{site}.mlp.in"] = Tap(f"{block}.mlp", side="input")
        halves = family.mlp_first.endswith("gate_up_proj")  # the gate, and what it multiplies
        gate = (0, config.intermediate_size) if halves else None
        taps[f"{site}.mlp.pre"] = Tap(f"{block}.{family.mlp_first}", span=gate)
        taps[f"{site}.mlp.post"] = Tap(f"{block}.{family.mlp_second}", side="input")
        taps[f"{site}.mlp.out"] = Tap(f"{block}.mlp")
        taps[f"{site}.mlp.write"] = Tap(f"{block}.{family.mlp_norm or 'mlp'}")
        taps[f"{site}.resid"] = Tap(block)
        taps[f"hidden.{index + 1}"] = Tap(block)
    taps[f"hidden.{config.num_hidden_layers}"] = Tap(family.final_norm)
    return taps


def by_token(values: Tensor, texts: int, tokens: int) -> Tensor | None:
    """A view of a module's tensor as `(texts, tokens, width)`, if it is one vector per token.

    Position embeddings are the same for all texts, and some models run their MLP on all tokens
    in one row.
    """
    if values.ndim == 3 and values.shape[0] in (1, texts) and values.shape[1] == tokens:
        return values.expand(texts, -1, -1)
    if values.ndim == 2 and values.shape[0] == texts * tokens:
        return torch.unflatten(values, 0, (texts, tokens))
    return None


def input_rows(projection: nn.Module) -> Tensor:
    """The weight of a linear module as `(inputs, outputs)`; that of GPT-2 is stored so."""
    weight = projection.get_parameter("weight")
    return weight.T if isinstance(projection, nn.Linear) else weight


class EverythingRead(Exception):  # noqa: N818 - ends the forward pass, not an error
    """Raised out of the forward pass by the hook that read the last wanted tensor."""


@contextmanager
def reading(
    model: nn.Module, taps: Mapping[str, Tap], stop: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Collect tensors, or views, by name while the model runs in the body of the `with`.

    With `stop` the pass ends with the last of them.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, tap: Tap, whole: Tensor) -> None:
        found[name] = tap.take(whole)
        if tap.projected:
            rows = input_rows(model.get_submodule(tap.module))
            found[name] = found[name] @ rows[slice(*tap.span or ())]
        if stop and len(found) == len(taps):
            raise EverythingRead

    with ExitStack() as hooks, suppress(EverythingRead):
        for name, tap in taps.items():
            hooks.enter_context(hook(model, tap, partial(keep, name, tap)))
        yield found


@contextmanager
def following(model: nn.Module, tap: Tap) -> Iterator[Callable[[], Tensor]]:
    """Yield a function that returns the tensor that the model computed last, once each."""

    def take() -> Tensor:
        if not found:
            raise InputError(f"{tap.module} is computed too late; give a site that comes before")
        return found.pop("source")

    with reading(model, {"source": tap}, stop=False) as found:
        yield take


def replacing(
    model: nn.Module, tap: Tap, replacement: Callable[[Tensor], Tensor], first: bool = True
) -> RemovableHandle:
    """Replace a tensor by one of its shape wherever the model runs in the body of the `with`.

    The new one is cast to the dtype and device of the old one. If `first`, hooks that are already
    there see it, such as those that collect `hidden_states` in transformers.
    """

    def change(whole: Tensor) -> Tensor:
        # A copy of what will change in place, so that neither the function nor gradients see that.
        tapped = whole.clone() if tap.in_place else tap.take(whole)
        return tap.put(whole, checked(replacement(tapped), tapped, tap.module))

    return hook(model, tap, change, first)


def checked(new: object, old: Tensor, where: str) -> Tensor:
    """A replacement in the dtype and on the device of what it replaces, of the same shape."""
    if not isinstance(new, Tensor) or new.shape != old.shape:
        given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise InputError(f"the replacement at {where} returned {given}; return {tuple(old.shape)}")
    return new.to(old)


def hook(
    model: nn.Module, tap: Tap, act: Callable[[Tensor], Tensor | None], first: bool = False
) -> RemovableHandle:
    """Call `act` on the whole tensor of a tap in every pass; what it returns replaces it."""

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs), "")
        whole = args[0] if args else kwargs.get(name)
        new = act(whole) if isinstance(whole, Tensor) else None
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return act(output)
        new = act(output[0]) if output and isinstance(output[0], Tensor) else None
        if new is None or isinstance(output, tuple):
            return None if new is None else (new, *output[1:])
        output[next(iter(output))] = new  # a model output of transformers, made for this call
        return output

    module: nn.Module = attrgetter(tap.module)(model)
    if tap.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True, prepend=first)
    return module.register_forward_hook(after, prepend=first)


@contextmanager
def computing(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules compute something else in the body of the `with`."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, earlier in before.items():
            if earlier is None:
                del module.forward
            else:
                module.forward = earlier


@dataclass(frozen=True)
class Sites:
    """Every place of a model that can be read or replaced."""

    taps: dict[str, Tap]  # of named sites, in the order of the forward pass; none in other families
    layers: int  # the number of blocks
    heads: Heads | None  # None in other families
    family: str  # model_type of the configuration
    measure: Callable[[], dict[str, int]]  # takes seconds

    @cached_property
    def widths(self) -> dict[str, int]:
        """Widths of named sites, and of every module whose output is one vector per token."""
        return self.measure()

    def resolve(self, site: str) -> str:
        """The full name of a site, such as `blocks.3.mlp.pre` for `blocks.middle.mlp.pre`."""
        if named := self.attention(site):
            fault = f"{site!r} is not one vector per token"
            raise InputError(
                f"{fault}; use lm.attention(texts, layers={named[0]}, what={named[1]!r})"
            )
        name = re.sub(r"^blocks\.middle\.", f"blocks.{self.layers // 2}.", site)
        if name in self.taps or self._head(name) or name in self.widths:
            return name
        last = self.layers - 1
        given = f"no site {site!r} in this model of {self.layers} blocks"
        if name.removesuffix("_mid") in self.taps:
            fault = f"site {site!r} does not exist in {self.family}"
            raise InputError(f"{fault}, whose attention and MLP run in parallel")
        listed: dict[str, dict[str, None]] = {}  # such as q, k and v of blocks.{0..5}.attn
        for known in self.taps or self.widths:
            most = self.layers if known.startswith("hidden.") else last
            every = re.sub(r"\.\d+(?=\.|$)", f".{{0..{most}}}", known, count=1)
            stem, *part = re.split(r"\.(?=[a-z_]+$)", every)
            listed.setdefault(stem, {}).update(dict.fromkeys(part))
        if self.heads:
            attention, shared = f"blocks.{{0..{last}}}.attn", self.heads.shared - 1
            listed[f"{attention}.q|z|result.{{0..{self.heads.count - 1}}}"] = {}
            listed[f"{attention}.k|v.{{0..{shared}}}"] = {}
        names = ", ".join(".".join(filter(None, (s, "|".join(p)))) for s, p in listed.items())
        here = f"blocks.{self.layers // 2}."
        middle = [n.replace(here, "blocks.middle.") for n in self.widths if n.startswith(here)]
        hint = did_you_mean(site, [*self.widths, *middle], most=0)
        if self.taps and re.match(r"hidden\.\d+$|blocks\.\d+\.resid$", name):
            after = f"hidden.{self.layers} is after the final norm"
            hint = f"; blocks.{last}.resid is the output of the last block, and {after}"
        raise InputError(f"{given}; it has {names} and module paths{hint}")

    def attention(self, site: str) -> tuple[int, Literal["pattern", "scores"]] | None:
        """The block of a site such as `blocks.3.attn.pattern`, and which of the two it names."""
        match = re.fullmatch(r"blocks\.(\d+|middle)\.attn\.(pattern|scores)", site)
        if match is None:
            return None
        layer = self.layers // 2 if match[1] == "middle" else int(match[1])
        return layer, "pattern" if match[2] == "pattern" else "scores"

    def given_to(self, block: int) -> Tap:
        """The residual stream that a block is given, or the final norm after the last."""
        name = f"hidden.{block}" if block == self.layers else f"blocks.{block}.resid"
        return Tap(self.taps[name].module, "input")

    @contextmanager
    def starting(
        self, model: nn.Module, block: int, supply: Callable[[Tensor], Tensor]
    ) -> Iterator[None]:
        """Let a model begin with a block, or the final norm, in the body of the `with`.

        `supply` is given the first block's input, and returns that of the block. Tokens, in one
        row, only matter in number.
        """
        in_tuple = self.family in _TUPLES

        def skip(states: Tensor, *_: Any, **__: Any) -> Any:
            return (states,) if in_tuple else states

        blocks = [model.get_submodule(self.taps[f"blocks.{i}.resid"].module) for i in range(block)]
        with computing(dict.fromkeys(blocks, skip)), hook(model, self.given_to(block), supply):
            yield

    def width(self, site: str) -> int:
        """The width of the vectors at a site."""
        name = self.resolve(site)
        tap = self._head(name)
        if tap is None or tap.span is None:
            return self.widths[name]
        return self.widths["embed"] if tap.projected else tap.span[1] - tap.span[0]

    def tap(self, site: str) -> Tap:
        """The tap of a site."""
        name = self.resolve(site)
        return self.taps.get(name) or self._head(name) or Tap(name)

    def _head(self, name: str) -> Tap | None:
        """The tap of one head, such as `blocks.3.attn.z.0`."""
        match = _HEAD.fullmatch(name)
        tap = self.taps.get(f"{match[1]}.{match[3].replace('result', 'z')}") if match else None
        if match is None or tap is None or self.heads is None:
            return None
        head, count, shared, size = int(match[4]), *astuple(self.heads)
        if match[3] in "kv" and head >= shared != count:
            fault = f"{name}: this model has key-value heads {_numbers(shared)}"
            reads = f"; query head {head} reads number {head * shared // count}"
            raise InputError(fault + (reads if head < count else ""))
        if head >= count:
            given = f"head {head} of block {match[2]}"
            raise InputError(f"{given}; the model has heads {_numbers(count)}")
        first = (tap.span or (0, 0))[0]
        start = first + head * (size if tap.groups == 1 else 3 * size)
        projected = match[3] == "result"
        return replace(tap, span=(start, start + size), groups=1, projected=projected)


def _numbers(count: int) -> str:
    return {1: "0 only", 2: "0 and 1"}.get(count, f"0 to {count - 1}")


def find_sites(
    config: "PretrainedConfig", measure: Callable[[], dict[str, int]] | None = None
) -> Sites:
    """Find the sites of a model, whose widths are measured once they are needed."""
    taps, measure = named_taps(config), measure or partial(measure_widths, config)
    heads = heads_of(config) if taps else None
    return Sites(taps, config.num_hidden_layers, heads, config.model_type, measure)


_MEASURED: dict[str, dict[str, int]] = {}  # by configuration and sites


def measure_widths(config: "PretrainedConfig") -> dict[str, int]:
    """Measure the widths by running a model once with tensors that have no content."""
    from torch._subclasses import FakeTensorMode
    from transformers import AutoModelForCausalLM

    taps = named_taps(config)
    if (known := f"{config.to_json_string(use_diff=False)} {taps}") in _MEASURED:
        return _MEASURED[known]
    shape = (2, 3)
    with FakeTensorMode(), torch.no_grad():
        # A copy, since building a model writes its choices into the configuration.
        build: Any = AutoModelForCausalLM.from_config
        model = build(copy.deepcopy(config)).train(False)
        modules = {path: Tap(path) for path, _ in model.named_modules() if path}
        with reading(model, taps | modules) as found:
            model(torch.zeros(shape, dtype=torch.long), use_cache=False)
    _MEASURED[known] = {
        name: found[name].shape[-1]
        for name in taps | modules
        if name in found and by_token(found[name], *shape) is not None
    }
    return _MEASURED[known]
