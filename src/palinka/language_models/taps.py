"""Where in a model a site is tapped: a module, one side of it, and perhaps a part of its output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Query, key or value within a fused projection whose output is `(…, groups · 3 · size)`.

    Attributes:
        index: 0 for the query, 1 for the key, 2 for the value.
        groups: How many times the three follow each other: once where they lie side by side
            (GPT-2), once per head where they are interleaved (GPT-NeoX).
    """

    index: int
    groups: int = 1

    def take(self, fused: Tensor) -> Tensor:
        """This part of `fused`, `(…, groups · size)`: heads in order, concatenated."""
        return self._of(fused).flatten(-2)

    def put(self, fused: Tensor, part: Tensor) -> Tensor:
        """A copy of `fused` with this part replaced."""
        changed = fused.clone()
        of_changed = self._of(changed)
        of_changed.copy_(part.reshape(of_changed.shape))
        return changed

    def _of(self, fused: Tensor) -> Tensor:
        """A view of this part, `(…, groups, size)`."""
        return torch.unflatten(fused, -1, (self.groups, 3, -1))[..., self.index, :]


@dataclass(frozen=True)
class Tap:
    """A module's output or first input, or a part of it.

    Attributes:
        module: The module's path in the model, such as `transformer.h.3.mlp.c_fc`.
        side: Whether the tensor is what the module returns or what it is given.
        part: The part of a fused projection that is meant, if not all of it.
    """

    module: str
    side: Literal["output", "input"] = "output"
    part: Part | None = None

    def take(self, whole: Tensor) -> Tensor:
        """The tapped part of the module's tensor; no copy where a view will do."""
        return whole if self.part is None else self.part.take(whole)

    def put(self, whole: Tensor, tapped: Tensor) -> Tensor:
        """The module's tensor with the tapped part replaced."""
        return tapped if self.part is None else self.part.put(whole, tapped)


def output_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output: itself, or the first of a tuple or a mapping."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    elif isinstance(output, Mapping) and output:
        output = next(iter(output.values()))
    return output if isinstance(output, Tensor) else None


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


def with_output_tensor(output: Any, tensor: Tensor) -> Any:
    """The module's output with its (first) tensor replaced."""
    if isinstance(output, tuple | list):
        return (tensor, *output[1:])
    if isinstance(output, Mapping):
        # A model output of transformers: made for this call, so that it may be written to.
        output[next(iter(output))] = tensor  # type: ignore[index]
        return output
    return tensor
