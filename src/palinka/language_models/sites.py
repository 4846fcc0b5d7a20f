"""Sites by name in every model family, and the hooks that read and replace them."""

import copy
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from palinka.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Tap:
    """A module's output or first input, or a part of a fused projection.

    Attributes:
        module: The module's path in the model, such as `transformer.h.3.mlp.c_fc`.
        side: The tensor that the module returns, or the one that it is given.
        part: 0 for the query, 1 for the key, 2 for the value of a fused projection, whose output
            is `(…, groups · 3 · size)`; None for the whole tensor.
        groups: 1 where the three lie side by side (GPT-2), the number of heads where they are
            interleaved (GPT-NeoX).
    """

    module: str
    side: Literal["output", "input"] = "output"
    part: int | None = None
    groups: int = 1

    def take(self, whole: Tensor) -> Tensor:
        """The tapped part of the module's tensor, heads concatenated; a view where possible."""
        return whole if self.part is None else self._view(whole).flatten(-2)

    def put(self, whole: Tensor, tapped: Tensor) -> Tensor:
        """The module's tensor with the tapped part replaced."""
        if self.part is None:
            return tapped
        changed = whole.clone()
        view = self._view(changed)
        view.copy_(tapped.reshape(view.shape))
        return changed

    def _view(self, fused: Tensor) -> Tensor:
        """A view of the part, `(…, groups, size)`."""
        return torch.unflatten(fused, -1, (self.groups, 3, -1))[..., self.part, :]


def output_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output: itself, or the first of a tuple or a mapping."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    elif isinstance(output, Mapping) and output:
        output = next(iter(output.values()))
    return output if isinstance(output, Tensor) else None


def with_output_tensor(output: Any, tensor: Tensor) -> Any:
    """The module's output with its (first) tensor replaced."""
    if isinstance(output, tuple | list):
        return (tensor, *output[1:])
    if isinstance(output, Mapping):
        # A model output of transformers: made for this call, so that it may be written to.
        output[next(iter(output))] = tensor  # type: ignore[index]
        return output
    return tensor


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


@dataclass(frozen=True)
class Family:
    """The module paths of one family; those of a block's parts are relative to the block.

    Attributes:
        blocks: The list of blocks.
        final_norm: The norm after the last block.
        mlp_first: The first projection of the MLP; the gate where the MLP is gated.
        mlp_second: Its second projection.
        attention_out: The attention's output projection.
        query, key, value: Their projections; the same module where they are fused.
        fused: Order of a fused projection's output: query, key and value one after the other
            (`"thirds"`), or so for each head (`"heads"`).
        mlp: The whole MLP.
    """

    blocks: str
    final_norm: str
    mlp_first: str
    mlp_second: str
    attention_out: str
    query: str
    key: str
    value: str
    fused: Literal["thirds", "heads"] | None = None
    mlp: str = "mlp"

    def block_taps(self, block: int, heads: int) -> dict[str, Tap]:
        """The taps within one block, by the last part of the site's name."""
        prefix = f"{self.blocks}.{block}"
        groups = heads if self.fused == "heads" else 1
        return {
            f"attn.{name}": Tap(
                f"{prefix}.{module}", "output", part if self.fused else None, groups
            )
            for part, (name, module) in enumerate(
                [("q", self.query), ("k", self.key), ("v", self.value)]
            )
        } | {
            "attn.out": Tap(f"{prefix}.{self.attention_out}"),
            "mlp.pre": Tap(f"{prefix}.{self.mlp_first}"),
            "mlp.post": Tap(f"{prefix}.{self.mlp_second}", side="input"),
            "mlp.out": Tap(f"{prefix}.{self.mlp}"),
            "resid": Tap(prefix),
        }


_GPT2 = Family(
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    mlp_first="mlp.c_fc",
    mlp_second="mlp.c_proj",
    attention_out="attn.c_proj",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    fused="thirds",
)
_GPT_NEO = replace(
    _GPT2,
    attention_out="attn.attention.out_proj",
    query="attn.attention.q_proj",
    key="attn.attention.k_proj",
    value="attn.attention.v_proj",
    fused=None,
)
_GPT_NEOX = Family(
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    mlp_first="mlp.dense_h_to_4h",
    mlp_second="mlp.dense_4h_to_h",
    attention_out="attention.dense",
    query="attention.query_key_value",
    key="attention.query_key_value",
    value="attention.query_key_value",
    fused="heads",
)
_LLAMA = Family(
    blocks="model.layers",
    final_norm="model.norm",
    mlp_first="mlp.gate_proj",
    mlp_second="mlp.down_proj",
    attention_out="self_attn.o_proj",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
)

FAMILIES = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _GPT_NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


def named_taps(config: "PretrainedConfig") -> dict[str, Tap]:
    """Every named site of a model, in the order of the forward pass; none for other families."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return {}
    layers: int = config.num_hidden_layers
    # hidden_states[0] is what the first block is given (embeddings and positions), those
    # between are the blocks' outputs, and the last is what the final norm returns.
    taps = {"hidden.0": Tap(f"{family.blocks}.0", side="input")}
    for block in range(layers):
        in_block = family.block_taps(block, config.num_attention_heads)
        taps |= {f"blocks.{block}.{name}": tap for name, tap in in_block.items()}
        if block + 1 < layers:
            taps[f"hidden.{block + 1}"] = Tap(f"{family.blocks}.{block}")
    taps[f"hidden.{layers}"] = Tap(family.final_norm)
    return taps


class _EverythingRead(Exception):  # noqa: N818 - ends the forward pass, not an error
    """Raised out of the forward pass by the hook that read the last wanted tensor."""


@contextmanager
def reading(model: nn.Module, taps: Mapping[str, Tap]) -> Iterator[dict[str, Tensor]]:
    """Collect tensors while the model runs in the body of the `with`, up to the last of them.

    Args:
        model: The model that the body runs.
        taps: What to read, under names of the caller's choice.

    Yields:
        The tensors by name, filled in as the model reaches them: the very tensors that the
        model computes, or views of them.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, tap: Tap, whole: Tensor) -> None:
        if name not in found:
            found[name] = tap.take(whole)
            if len(found) == len(taps):
                raise _EverythingRead

    with ExitStack() as hooks:
        for name, tap in taps.items():
            hooks.enter_context(_hook(model, tap, partial(keep, name, tap)))
        with suppress(_EverythingRead):
            yield found


def _hook(
    model: nn.Module,
    tap: Tap,
    act: Callable[[Tensor], Tensor | None],
    first: bool = False,
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
        whole = output_tensor(output)
        new = None if whole is None else act(whole)
        return None if new is None else with_output_tensor(output, new)

    module = model.get_submodule(tap.module)
    if tap.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True, prepend=first)
    return module.register_forward_hook(after, prepend=first)


def replacing(
    model: nn.Module, tap: Tap, replacement: Callable[[Tensor], Tensor], first: bool = True
) -> RemovableHandle:
    """Replace a tensor wherever the model runs in the body of a `with`.

    Args:
        model: The model that the body runs.
        tap: What to replace.
        replacement: From the tensor to one of the same shape, which is cast to the tensor's
            dtype and device.
        first: Run before the hooks that are already there, so that they (those that collect
            `hidden_states` in transformers, for one) see the replaced tensor.

    Returns:
        The hook, to be entered by `with` or removed.
    """

    def change(whole: Tensor) -> Tensor:
        tapped = tap.take(whole)
        new = replacement(tapped)
        if not isinstance(new, Tensor) or new.shape != tapped.shape:
            given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise InputError(
                f"the replacement at {tap.module} returned {given}; "
                f"return a tensor of the shape it was given, {tuple(tapped.shape)}"
            )
        return tap.put(whole, new.to(tapped))

    return _hook(model, tap, change, first)


@contextmanager
def following(model: nn.Module, tap: Tap) -> Iterator[Callable[[], Tensor]]:
    """Keep the latest value of a tensor while the model runs in the body of the `with`.

    Yields:
        A function that returns the tensor, once for each time that the model computed it. It
        raises an InputError if the model has not reached the tensor yet.
    """
    latest: list[Tensor] = []

    def keep(whole: Tensor) -> None:
        latest[:] = [tap.take(whole)]

    def take() -> Tensor:
        if not latest:
            raise InputError(
                f"the source at {tap.module} is computed after the site that it is to replace; "
                "give a source site that comes before it"
            )
        return latest.pop()

    with _hook(model, tap, keep):
        yield take


_LAYERED = re.compile(r"(blocks|hidden)\.([0-9]+)(?=\.|$)")
_PROBE_SHAPE = (2, 3)


@dataclass(frozen=True)
class Sites:
    """Every place of a model that can be read or replaced.

    Attributes:
        named: The width of every site that has a name of its own, in the order of the
            forward pass; empty where the model's family is not known.
        modules: The width of every module whose output is one vector per token, by path.
        silent: The paths of the other modules.
        layers: The number of blocks.
        taps: The taps of the named sites.
    """

    named: dict[str, int]
    modules: dict[str, int]
    silent: frozenset[str]
    layers: int
    taps: dict[str, Tap]

    def resolve(self, site: str) -> str:
        """The full name of a site, such as `blocks.3.mlp.pre` for `blocks.middle.mlp.pre`.

        Raises:
            InputError: If the model has no such site; names the nearest and lists them all.
        """
        name = re.sub(r"^blocks\.middle\.", f"blocks.{self.layers // 2}.", site)
        if name in self.named or name in self.modules:
            return name
        if name in self.silent:
            raise InputError(
                f"module {site!r} does not give one vector per token when the model runs; "
                f"choose one that does, {self._choices()}"
            )
        layered = _LAYERED.match(name)
        if layered and self.named:
            kind, layer = layered[1], int(layered[2])
            last = self.layers if kind == "hidden" else self.layers - 1
            if layer > last:
                raise InputError(
                    f"site {site!r} is out of range: the model has {self.layers} blocks, so "
                    f"give {kind}.0 to {kind}.{last}; {self._choices()}"
                )
        middle = f"blocks.{self.layers // 2}."
        words = [n.replace(middle, "blocks.middle.") for n in self.named if n.startswith(middle)]
        nearest = difflib.get_close_matches(site, [*words, *self.named, *self.modules], n=3)
        hint = f"the nearest are {', '.join(nearest)}; " if nearest else ""
        raise InputError(f"no site {site!r} in this model; {hint}{self._choices()}")

    def width(self, site: str) -> int:
        """The width of the vectors at a site."""
        name = self.resolve(site)
        return self.named[name] if name in self.named else self.modules[name]

    def tap(self, site: str) -> Tap:
        """The tap of a site."""
        name = self.resolve(site)
        return self.taps.get(name) or Tap(name)

    def _choices(self) -> str:
        """The sites in brief, each kind once."""
        if not self.named:
            return f"its modules are {', '.join(_brief(self.modules, self.layers))}"
        sites = ", ".join(_brief(self.named, self.layers))
        return f"its sites are {sites} (or middle for the number of a block), or any module path"


def _brief(names: Iterable[str], layers: int) -> list[str]:
    """Names that differ only in the number of the layer, written once with its range."""

    def shorten(name: str) -> str:
        last = layers if name.startswith("hidden.") else layers - 1
        return re.sub(r"\.[0-9]+(?=\.|$)", f".{{0..{last}}}", name, count=1)

    return list(dict.fromkeys(shorten(name) for name in names))


def find_sites(config: "PretrainedConfig") -> Sites:
    """Find the sites of the model that a configuration describes, without its weights.

    The model is built out of tensors that have a shape and no content, and runs once.
    """
    from torch._subclasses import FakeTensorMode
    from transformers import AutoModelForCausalLM

    taps = named_taps(config)
    with FakeTensorMode(), torch.no_grad():
        # A copy, since building a model writes its choices into the configuration.
        build: Any = AutoModelForCausalLM.from_config
        model = build(copy.deepcopy(config)).train(False)
        paths = [path for path, _ in model.named_modules() if path]
        everything = {path: Tap(path) for path in paths} | taps
        with reading(model, everything) as found:
            model(torch.zeros(_PROBE_SHAPE, dtype=torch.long), use_cache=False)
    widths = {
        name: values.shape[-1]
        for name, values in found.items()
        if by_token(values, *_PROBE_SHAPE) is not None
    }
    return Sites(
        named={name: widths[name] for name in taps},
        modules={path: widths[path] for path in paths if path in widths},
        silent=frozenset(path for path in paths if path not in widths),
        layers=config.num_hidden_layers,
        taps=taps,
    )
