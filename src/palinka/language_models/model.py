"""Language models whose activations can be read and replaced."""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palinka.errors import InputError
from palinka.language_models.edits import Replacement, as_function, as_function_of_source
from palinka.language_models.sites import Sites, by_token, find_sites, following, reading, replacing
from palinka.language_models.spec import LanguageModelSpec
from palinka.language_models.token_text import bos_id, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Activations(Mapping[str, Tensor]):
    """Activations by site, `(texts, tokens, width)` each and zero where a text has no token.

    Attributes:
        tokens: The token ids, `(texts, tokens)`, right-padded.
        mask: 1 for a token, 0 for padding, `(texts, tokens)`.
    """

    def __init__(self, sites: Mapping[str, Tensor], tokens: Tensor, mask: Tensor) -> None:
        self._sites = dict(sites)
        self.tokens = tokens
        self.mask = mask

    def __getitem__(self, site: str) -> Tensor:
        return self._sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


@dataclass(frozen=True)
class Tokens:
    """Token ids of several texts, padded on the right.

    Attributes:
        ids: `(texts, tokens)`, int64; any valid id where there is no token.
        mask: `(texts, tokens)`, int64; 1 for a token, 0 for padding.

    Raises:
        InputError: If the shapes differ, a text has no token, or padding comes before a token.
    """

    ids: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.mask.shape or not self.ids.numel():
            raise InputError(
                f"ids of shape {tuple(self.ids.shape)} with a mask of {tuple(self.mask.shape)}; "
                "give both as (texts, tokens), with at least one text and one token"
            )
        if bool((self.mask[:, 1:] > self.mask[:, :-1]).any()) or not bool(self.mask[:, 0].all()):
            raise InputError("padding before a token, or a text of padding only; pad on the right")

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], pad: int = 0) -> "Tokens":
        """Pad sequences of ids, none of them empty, to the longest."""
        if not sequences:
            raise InputError("an empty list of texts; give at least one")
        for index, sequence in enumerate(sequences):
            if not len(sequence):
                raise InputError(f"text {index} has no tokens; leave empty texts out")
        longest = max(len(sequence) for sequence in sequences)
        ids = torch.full((len(sequences), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.long)
            mask[row, : len(sequence)] = 1
        return cls(ids, mask)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each text, `(texts,)`."""
        return self.mask.sum(1)

    def rows(self, start: int, stop: int) -> "Tokens":
        """Some of the texts, padded to the longest of them."""
        longest = int(self.lengths[start:stop].max())
        return Tokens(self.ids[start:stop, :longest], self.mask[start:stop, :longest])

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on a device."""
        return Tokens(self.ids.to(device), self.mask.to(device))


def padded_tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], bos: bool = False
) -> Tokens:
    """Tokenize texts by the rule of `token_text`, and pad them on the right.

    The tokenizer needs no padding token of its own and is left as it is.

    Args:
        tokenizer: The language model's tokenizer.
        texts: At least one.
        bos: Whether each begins with the tokenizer's BOS token.

    Raises:
        InputError: If there is no text, one has no tokens, or the tokenizer has no BOS token.
    """
    if isinstance(texts, str):
        raise InputError(f"one string, {reprlib.repr(texts)}; give a list of texts")
    if not texts:
        raise InputError("an empty list of texts; give at least one")
    start = [bos_id(tokenizer)] if bos else []
    ids = [[*start, *found] if found else [] for found in token_ids(tokenizer, texts)]
    return Tokens.of(ids)


def padding_id(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> int:
    """An id to fill up with: that of the padding or end-of-text token, or 0.

    A padding token that was added to the tokenizer alone has an id that the model cannot read.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int) and token < vocabulary:
            return token
    return 0


Texts = Sequence[str] | Tokens | Tensor


class LanguageModel:
    """A causal language model of Hugging Face with its tokenizer and the names of its sites.

    Attributes:
        model: The model, in evaluation mode, its parameters without gradients.
        tokenizer: Its tokenizer, as it was loaded.
        reference: What it was loaded from.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        reference: LanguageModelSpec,
    ) -> None:
        self.model = model.train(False).requires_grad_(False)
        self.tokenizer = tokenizer
        self.reference = reference
        self._replaced: list[str] = []

    @classmethod
    def from_pretrained(
        cls,
        name: str = "mini",
        *,
        revision: str | None = None,
        gguf_file: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
    ) -> "LanguageModel":
        """Load a model.

        Args:
            name: `mini` for the bundled model, a name on the Hugging Face hub, a local
                folder, or a GGUF file.
            revision: Branch, tag or commit, for a model on the hub.
            gguf_file: Name of the GGUF file in the folder or repository, if it is one.
            dtype: What to compute in, whatever the weights are stored in.
            device: A torch device, or `auto`: CUDA where there is one, else the CPU.

        Raises:
            InputError: If there is no such model, dtype or device.
        """
        return LanguageModelSpec(name, revision, gguf_file, dtype, device).load()

    @property
    def name(self) -> str:
        """The name that the model was loaded by."""
        return self.reference.name

    @property
    def revision(self) -> str | None:
        """The revision that was asked for."""
        return self.reference.revision

    @property
    def device(self) -> torch.device:
        """Where the model is computed."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """What the model is computed in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return int(self.model.config.num_hidden_layers)

    @property
    def context_length(self) -> int:
        """The largest number of tokens of a text."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(self.tokenizer.model_max_length if limit is None else limit)

    @property
    def sites(self) -> dict[str, int]:
        """The width of every site, in the order of the forward pass.

        Module paths are sites too; they are listed only where the model's family is not known
        and its sites have no other names.
        """
        return dict(self._sites.named or self._sites.modules)

    @cached_property
    def _sites(self) -> Sites:
        return find_sites(self.model.config)

    def resolve(self, site: str) -> str:
        """The full name of a site, such as `blocks.3.mlp.pre` for `blocks.middle.mlp.pre`.

        Raises:
            InputError: If the model has no such site; names the nearest and lists them all.
        """
        return self._sites.resolve(site)

    def width(self, site: str) -> int:
        """The width of the vectors at a site.

        Raises:
            InputError: If the model has no such site.
        """
        return self._sites.width(site)

    def fingerprint(self) -> dict[str, str]:
        """What identifies the weights, the tokenizer and the dtype; no path, no device."""
        return self.reference.fingerprint()

    def tokenize(self, texts: Sequence[str], bos: bool = False) -> Tokens:
        """Tokenize texts without special tokens, right-padded, on the CPU.

        Args:
            texts: Text in which the name of a special token is text like any other.
            bos: Whether each text begins with the tokenizer's BOS token, as in training with
                `data.bos`. Texts given to `read`, `logits` and `generate` begin without.

        Raises:
            InputError: If a text has no tokens, or more than the model's context, or the tokenizer
                has no BOS token.
        """
        return self._fitting(padded_tokens(self.tokenizer, texts, bos))

    def read(self, texts: Texts, sites: Sequence[str], batch_size: int = 32) -> Activations:
        """Read activations at several sites, in one pass over each batch of texts.

        A pass ends where the last of the sites has been read.

        Args:
            texts: Texts, their tokens, or ids of shape `(texts, tokens)` without padding.
            sites: Names of sites, or module paths.
            batch_size: How many texts go through the model at once.

        Returns:
            Activations under the names of the sites as given, on the model's device.

        Raises:
            InputError: If there is no such site, or if a text has no tokens or more than the
                model's context.
        """
        if isinstance(sites, str) or not sites:
            raise InputError(f"sites {sites!r}; give a list of at least one site")
        tokens = self._tokens(texts)
        activations: dict[str, Tensor] = {}
        for start in range(0, len(tokens.ids), batch_size):
            batch = tokens.rows(start, start + batch_size)
            count, longest = batch.ids.shape
            for site, values in self._read(batch.ids, sites, batch.mask).items():
                values = _without_padding(values, batch.mask)
                if count == len(tokens.ids):
                    activations[site] = values
                    continue
                if site not in activations:
                    activations[site] = values.new_zeros(*tokens.ids.shape, values.shape[-1])
                activations[site][start : start + count, :longest] = values
        return Activations(activations, tokens.ids, tokens.mask)

    def read_blocks(self, ids: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Read activations of blocks of tokens, none of it padding, with nothing in between.

        Args:
            ids: Token ids, `(blocks, tokens)`.
            sites: Names of sites, or module paths.

        Returns:
            The tensors that the model computed, `(blocks, tokens, width)`, under the names of
            the sites as given; views of larger ones where a site is part of a fused projection.

        Raises:
            InputError: If there is no such site, or the model's embedding has no such id.
        """
        self._check_ids(ids)
        return self._read(ids.to(self.device, non_blocking=True), sites)

    @torch.no_grad()
    def _read(
        self, ids: Tensor, sites: Sequence[str], mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        taps = {site: self._sites.tap(site) for site in sites}
        with reading(self.model, taps) as found:
            self._forward(ids, mask)
        activations = {}
        for site in taps:
            values = by_token(found[site], *ids.shape)
            assert values is not None, site  # it was, when the sites were found
            activations[site] = values
        return activations

    def _forward(self, ids: Tensor, mask: Tensor | None) -> Any:
        # Without a mask the model may take its fast path for causal attention.
        padded = mask is not None and not bool(mask.all())
        return self.model(input_ids=ids, attention_mask=mask if padded else None, use_cache=False)

    @torch.no_grad()
    def logits(self, texts: Texts) -> Tensor:
        """Next-token logits, `(texts, tokens, vocabulary)`, zero where a text has no token.

        Args:
            texts: Texts, their tokens, or ids of shape `(texts, tokens)` without padding.
        """
        tokens = self._tokens(texts)
        logits: Tensor = self._forward(tokens.ids, tokens.mask).logits
        return _without_padding(logits, tokens.mask)

    @contextmanager
    def replaced(
        self,
        site: str,
        replacement: Replacement,
        edit: Callable[[Tensor], Tensor] | None = None,
        keep_error: bool = False,
        source_site: str | None = None,
    ) -> Iterator[None]:
        """Replace a site's activations wherever the model runs in the body of the `with`.

        Replacements nest; at one site the inner one is given what the outer one returned.
        What is read at a replaced site is what the model goes on with.

        Args:
            site: The name of a site, or a module path.
            replacement: A function of activations, `(texts, tokens, width)`, or an autoencoder
                with `encode` and `decode`, whose reconstruction takes their place.
            edit: A function of the autoencoder's latents, applied before they are decoded.
            keep_error: Whether to add what the reconstruction of the unedited latents misses,
                so that nothing but the edit changes.
            source_site: For a transcoder, the site that it reads in the same forward pass, which
                comes before the one that it replaces; the replaced site itself if left out.

        Raises:
            InputError: If there is no such site, or if the replacement cannot replace it.
        """
        tap = self._sites.tap(site)
        with ExitStack() as following_source:
            if source_site is not None:
                source = following_source.enter_context(
                    following(self.model, self._sites.tap(source_site))
                )
                function = as_function_of_source(replacement, edit, keep_error, source)
            elif getattr(replacement, "is_transcoder", False):
                raise InputError(
                    f"a transcoder is to replace {site!r}; give the source_site that it reads"
                )
            else:
                function = as_function(replacement, edit, keep_error)
            # Before all hooks of others, after our own.
            first = tap.module not in self._replaced
            self._replaced.append(tap.module)
            try:
                with replacing(self.model, tap, function, first):
                    yield
            finally:
                self._replaced.remove(tap.module)

    @torch.no_grad()
    def generate(self, texts: Texts, **options: Any) -> Any:
        """Continue texts with `generate` of transformers.

        Args:
            texts: Texts, their tokens, or ids of shape `(texts, tokens)` without padding.
            options: What `generate` takes, such as `max_new_tokens` and `do_sample`.

        Returns:
            What `generate` returns: ids, `(texts, tokens)`, where shorter texts are padded on
            the left, so that all end where their continuation begins.
        """
        tokens = self._tokens(texts)
        longest = tokens.ids.shape[1]
        # Column j of a row that is n short is its token j - n; the padding goes to the front.
        columns = torch.arange(longest, device=self.device) + tokens.lengths[:, None]
        columns %= longest
        options = {"pad_token_id": padding_id(self.tokenizer, self._vocabulary)} | options
        return self.model.generate(
            tokens.ids.gather(1, columns), attention_mask=tokens.mask.gather(1, columns), **options
        )

    def _tokens(self, texts: Texts) -> Tokens:
        """Texts as tokens on the model's device."""
        if isinstance(texts, Tensor):
            texts = Tokens(texts.long(), torch.ones_like(texts, dtype=torch.long))
        if not isinstance(texts, Tokens):
            texts = self.tokenize(texts)
        self._check_ids(texts.ids)
        return self._fitting(texts).to(self.device)

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def _check_ids(self, ids: Tensor) -> None:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self._vocabulary:
            raise InputError(
                f"token ids from {low} to {high}, and the embedding of {self.name!r} has 0 to "
                f"{self._vocabulary - 1}; use the tokenizer that belongs to the model"
            )

    def _fitting(self, tokens: Tokens) -> Tokens:
        longest = int(tokens.lengths.max())
        if longest > self.context_length:
            raise InputError(
                f"text {int(tokens.lengths.argmax())} has {longest} tokens, more than the "
                f"{self.context_length} of the context of {self.name!r}; cut it"
            )
        return tokens


def _without_padding(values: Tensor, mask: Tensor) -> Tensor:
    return values if bool(mask.all()) else values.masked_fill(mask[..., None] == 0, 0)
