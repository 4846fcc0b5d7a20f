"""Activations and latents of probing tasks, and what they are compared with."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.autoencoders.linear import LinearAutoencoder
from palinka.data import Context
from palinka.errors import InputError, track
from palinka.evaluation.losses import batches
from palinka.evaluation.tasks import Task
from palinka.evaluation.values import Dictionary, Subject
from palinka.language_models.edits import latents_of
from palinka.language_models.model import Tokens
from palinka.language_models.token_text import bos_id, token_ids

Pooling = Literal["last", "mean", "max"]
Encode = Callable[[Tensor], Tensor]
Matrix = NDArray[np.float32]
BATCH = 32
ROWS = 4096
RANDOM = "random_dictionary"
# Rows that the random dictionary is matched on.
SAMPLE = 4096


class Representations(NamedTuple):
    """Representations of the items of a task, a row for each."""

    dense: Matrix  # activations, (items, width)
    latents: dict[str, Matrix]  # of each encoder, (items, latents)
    tokens: Matrix  # presence of token ids, (items, ids)
    length: NDArray[np.int64]  # tokens of each text, or before a token


def read_tasks(
    subject: Subject, texts: Sequence[Task], tokens: Sequence[Task],
    encoders: Mapping[str, Encode], pooling: Pooling,
) -> Iterator[tuple[Task, Representations]]:  # fmt: skip
    """Read the items of tasks on tokens, and of tasks of texts."""
    yield from zip(tokens, read_tokens(subject, tokens, encoders), strict=True)
    for task in texts:
        yield read_texts(subject, task, encoders, pooling)


def read_tokens(
    subject: Subject, tasks: Sequence[Task], encoders: Mapping[str, Encode]
) -> Iterator[Representations]:
    """Read the items of tasks on tokens of the same contexts, in one pass, and encode them."""
    if not tasks:
        return
    contexts = tasks[0].contexts
    places = np.unique(np.concatenate([task.places for task in tasks]), axis=0)
    step = np.array([subject.model.context_length + 1, 1])
    codes = places @ step
    needed = np.unique(places[:, 0])
    rows = np.empty((len(places), subject.model.width(subject.site)), np.float32)
    starts = range(0, len(needed), BATCH)
    for start in track(starts, "Reading the tokens of tasks", len(starts)):
        batch = needed[start : start + BATCH]
        tokens = Tokens.of([contexts[number].tolist() for number in batch])
        found = subject.model.read(tokens, subject.site)[subject.site]
        mine = np.flatnonzero(np.isin(places[:, 0], batch))
        index = torch.from_numpy(np.searchsorted(batch, places[mine, 0]))
        rows[mine] = found[index, torch.from_numpy(places[mine, 1])].float().cpu().numpy()

    for task in tasks:
        dense = rows[np.searchsorted(codes, task.places @ step)]
        latents = {name: _encoded(encoder, dense) for name, encoder in encoders.items()}
        ids = [contexts[number][[at, at - 1]] for number, at in task.places]
        yield Representations(dense, latents, _presence(ids, True), task.places[:, 1] + 1)


def read_texts(
    subject: Subject, task: Task, encoders: Mapping[str, Encode], pooling: Pooling,
    longest: int | None = None, cut_end: bool = False,
) -> tuple[Task, Representations]:  # fmt: skip
    """Read and pool the texts of a task, cut to the model's context.

    They lose their start, or with `cut_end` their end. Special tokens, and those that no dictionary
    is trained on, are left out, and texts without another token. Latents are pooled, not computed
    from pooled activations.
    """
    model = subject.model
    start = [bos_id(model.tokenizer)] * subject.bos
    skip, most = max(subject.skip, len(start)), model.context_length
    content = min(most, longest or most) - len(start)
    kept_part = slice(content) if cut_end else slice(-content, None)
    cut = [ids[kept_part] for ids in token_ids(model.tokenizer, task.texts)]
    kept = np.array([len(ids) + len(start) > skip for ids in cut])
    if not kept.any():
        fault = f"no text has more than the {skip} tokens that the dictionary was not trained on"
        raise InputError(f"{task.name}: {fault}; give longer ones")
    texts = [start + ids for ids, one in zip(cut, kept, strict=True) if one]
    lengths = np.array([len(ids) for ids in texts])
    order, pooled = np.argsort(lengths, kind="stable"), dict[str, list[Matrix]]()
    for at in track(range(0, len(order), BATCH), f"Reading {task.name}", -(-len(order) // BATCH)):
        batch = order[at : at + BATCH]
        tokens = Tokens.of([texts[number] for number in batch])
        found = model.read(tokens, subject.site)[subject.site].float()
        for row, size in zip(found, lengths[batch], strict=True):
            part = row[size - 1 : size] if pooling == "last" else row[skip:size]
            for name, encoder in {"": lambda x: x, **encoders}.items():
                values = _encoded(encoder, part.cpu().numpy())
                one = values.max(axis=0) if pooling == "max" else values.mean(axis=0)
                pooled.setdefault(name, []).append(one)
    back = np.argsort(order)
    matrices = {name: np.stack(rows)[back] for name, rows in pooled.items()}
    ids = [np.array(ids[:-3:-1] if pooling == "last" else ids[skip:]) for ids in texts]
    presence = _presence(ids, pooling == "last")
    left = np.flatnonzero(kept)
    own = [task.texts[at] for at in left.tolist()]
    task = replace(task, labels=task.labels[left], groups=task.groups[left], texts=own)
    dense = matrices.pop("")
    return task, Representations(dense, matrices, presence, lengths - len(start))


def encoders_of(dictionaries: Sequence[Dictionary]) -> dict[str, Encode]:
    """Encoders of dictionaries by their names."""
    return {d.name: partial(latents_of, d.autoencoder) for d in dictionaries}


def _encoded(encoder: Encode, x: Matrix) -> Matrix:
    parts = [encoder(torch.from_numpy(x[at : at + ROWS])) for at in range(0, len(x), ROWS)]
    return torch.cat(parts).float().cpu().numpy()


def _presence(ids: Sequence[NDArray[np.int64]], ordered: bool) -> Matrix:
    """Presence of the ids that two items or more have; by place in the item if `ordered`."""
    keys = [{*enumerate(own.tolist())} if ordered else {*own.tolist()} for own in ids]
    counts = Counter(key for own in keys for key in own)
    columns = {key: at for at, key in enumerate(key for key, n in counts.items() if n > 1)}
    found = np.zeros((len(ids), len(columns)), np.float32)
    for row, own in enumerate(keys):
        found[row, [columns[key] for key in own if key in columns]] = 1.0
    return found


class RandomDictionary:
    """Dictionary of the class and shape of another, with weights at initialization."""

    def __init__(self, fresh: LinearAutoencoder, scaling: Any, threshold: float | None) -> None:
        self._fresh, self.scaling, self._threshold = fresh, scaling, threshold
        self.dictionary = fresh.dictionary.detach()
        """Decoder directions, `(latents, width)`."""

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents, `(…, latents)`, of activations, `(…, width)`."""
        x = x.to(self.dictionary)
        x = self.scaling(x) if self.scaling else x
        if self._threshold is None:
            return self._fresh.encode(x)
        values = self._fresh.encoder_output(x)
        return values * (values > self._threshold)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Activations, `(…, width)`, of latents, `(…, latents)`."""
        x = self._fresh.decode(latents)
        return self.scaling.inverse(x) if self.scaling else x


def random_dictionary(dictionary: Dictionary, rows: Tensor, seed: int) -> RandomDictionary | None:
    """Dictionary of the class, shape and centering of another, with weights at initialization.

    Architectures that do not keep the largest `k` of a row get one threshold, at which as many
    latents are active on `rows` as of the other. None for classes of other libraries.
    """
    module = dictionary.autoencoder
    trained = getattr(module, "autoencoder", module)
    if not isinstance(trained, LinearAutoencoder):
        return None
    scaling = getattr(module, "scaling", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(trained)(**trained.config()).eval().to(trained.dictionary.device)
    with torch.no_grad():
        if fresh.decoder_bias is not None and trained.decoder_bias is not None:
            fresh.decoder_bias.copy_(trained.decoder_bias)
        if vars(type(trained)).get("keeps_top_k"):
            return RandomDictionary(fresh, scaling, None)
        rows = rows.to(trained.dictionary)
        active = int((latents_of(module, rows) != 0).sum())
        values = fresh.encoder_output(scaling(rows) if scaling else rows).flatten()
        threshold = float(values.kthvalue(max(1, values.numel() - active)).values)
    return RandomDictionary(fresh, scaling, threshold)


def read_rows(subject: Subject, contexts: Iterable[Context]) -> Iterator[Tensor]:
    """Read what dictionaries of the site are given, `(contexts, tokens, width)`, in batches."""
    for batch in batches(contexts, subject.model):
        ids = torch.from_numpy(np.stack([context.tokens for context in batch]))
        yield subject.model.read_contexts(ids, [subject.site])[subject.site][:, subject.skip :]


def sample_rows(subject: Subject) -> Tensor:
    """Activations of the first validation tokens, `(rows, width)`, about 4,096."""
    rows, count = list[Tensor](), 0
    for context in subject.contexts():
        ids = torch.from_numpy(context.tokens)[None]
        rows.append(subject.model.read(ids, subject.site)[subject.site][0, subject.skip :])
        if (count := count + len(rows[-1])) >= SAMPLE:
            break
    return torch.cat(rows)


def random_dictionaries(subject: Subject, seed: int, each: int = 1) -> list[Dictionary]:
    """Random dictionaries of each recipe, of the L0 of its first `each` dictionaries."""
    rows, by_recipe, found = sample_rows(subject), subject.recipes, []
    for (recipe, own), n in product(by_recipe.items(), range(each)):
        if n < len(own) and (random := random_dictionary(own[n], rows, seed + n)):
            name = RANDOM if len(by_recipe) == 1 else f"{RANDOM} of {recipe}"
            name = name if each == 1 else f"{name}/{n}"
            decoder = random.dictionary.float().cpu().numpy()
            found.append(replace(own[n], name=name, autoencoder=random, decoder=decoder))
    return found
