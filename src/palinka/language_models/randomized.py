"""Control models: language models whose weights, or what they read, are randomized."""

import copy
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from palinka.language_models.spec import Mode, Treatment


@torch.no_grad()
def randomize(
    model: PreTrainedModel, mode: Mode, embeddings: Treatment, norms: Treatment, seed: int
) -> None:
    """Make a control of a trained model, on the CPU, in place, as `LanguageModel.randomized`.

    The weights of `tokens` and `coordinates` stay: see `token_order` and `shuffled_coordinates`.
    """
    if mode == "embeddings":
        table: Any = model.get_input_embeddings()
        table.register_forward_hook(partial(_draw_embeddings, _moments(table.weight), seed))
    if mode in ("tokens", "embeddings", "coordinates"):
        return
    kept = {id(p) for p in _kept(model, embeddings == "keep", norms == "keep")}
    fresh = None
    if mode == "initial":
        build: Any = AutoModelForCausalLM.from_config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = build(copy.deepcopy(model.config))
    # A tied tensor has one name here, so that it is randomized once.
    for name, weight in model.named_parameters():
        if id(weight) in kept:
            continue
        # By its name, so that it does not depend on what else is randomized.
        generator = _generator(seed, zlib.crc32(name.encode()))
        if fresh is not None:
            weight.copy_(fresh.get_parameter(name))
        elif mode == "permuted":
            order = torch.randperm(weight.numel(), generator=generator)
            weight.copy_(weight.flatten()[order].view_as(weight))
        else:
            mean, sd = _moments(weight)
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(mean + sd * drawn)


def token_order(ids: Tensor, mask: Tensor | None, seed: int) -> Tensor:
    """Random order of each text's tokens, `(texts, tokens)`; the first stays, as padding does.

    It depends on the seed and the text alone, not on its batch.
    """
    order = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(dim=1).tolist()
    for row, text, length in zip(order, ids.cpu().numpy(), lengths, strict=True):
        text_seed = zlib.crc32(text[:length].astype(np.int64).tobytes())
        np.random.default_rng([seed, text_seed]).shuffle(row[1:length])
    return torch.from_numpy(order).to(ids.device)


def shuffled_coordinates(values: Tensor, ids: Tensor, seed: int) -> Tensor:
    """Shuffle the coordinates of each vector, `(texts, tokens, width)`, each anew.

    It depends on the seed and the text alone, not on its batch.
    """
    draws = (torch.rand(values.shape[1:], generator=each) for each in _of_texts(ids, seed))
    order = torch.stack([draw.argsort(dim=-1) for draw in draws])
    return values.take_along_dim(order.to(values.device), -1)


def _of_texts(ids: Tensor, seed: int) -> Iterator[Generator]:
    """A generator for each text, without its padding, which is 0 in `Tokens.of`."""
    for text in ids.cpu().numpy().astype(np.int64):
        yield _generator(seed, zlib.crc32(np.trim_zeros(text, "b").tobytes()))


def _draw_embeddings(
    moments: tuple[float, float], seed: int, _: nn.Module, args: tuple[Any, ...], output: Tensor
) -> Tensor:
    """Gaussian vectors in place of the output of the token embeddings; the same for a text."""
    shape = output.shape[1:]
    rows = [torch.randn(shape, generator=each) for each in _of_texts(args[0], seed)]
    return (moments[0] + moments[1] * torch.stack(rows)).to(output)


def _kept(model: PreTrainedModel, embeddings: bool, norms: bool) -> Iterator[nn.Parameter]:
    """Parameters of embeddings (also of positions) and unembedding, and of norms, by type."""
    of_output: Any = model.get_output_embeddings
    ends = (model.get_input_embeddings(), of_output())
    for module in model.modules():
        of_embeddings = isinstance(module, nn.Embedding) or module in ends
        of_norm = type(module).__name__.lower().endswith("norm")
        if (embeddings and of_embeddings) or (norms and of_norm):
            yield from module.parameters(recurse=False)


def _moments(weight: Tensor) -> tuple[float, float]:
    values = weight.double()
    return float(values.mean()), float(values.std(correction=0))


def _generator(*seeds: int) -> Generator:
    state = np.random.SeedSequence(list(seeds)).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0] >> 1))
