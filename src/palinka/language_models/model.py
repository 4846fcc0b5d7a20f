"""Language models whose activations can be read and replaced."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from palinka.errors import InputError
from palinka.language_models.edits import Edit, Replacement, as_function
from palinka.language_models.sites import by_token, following, reading, replacing
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
        ids: `(texts, tokens)`, int64; any valid id in padding.
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
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Tokens":
        """Pad sequences of ids, none of them empty, to the longest."""
        if not sequences:
            raise InputError("an empty list of texts; give at least one")
        for index, sequence in enumerate(sequences):
            if not len(sequence):
                raise InputError(f"text {index} has no tokens; leave empty texts out")
        rows = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
        ids, mask = (
            pad_sequence(values, batch_first=True)
            for values in (rows, [torch.ones_like(row) for row in rows])
        )
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


Texts = Sequence[str] | Tokens | Tensor


class LanguageModel:
    """A causal language model of Hugging Face with its tokenizer and the names of its sites.

    Attributes:
        model: The model, in evaluation mode, its parameters without gradients.
        tokenizer: Its tokenizer, as it was loaded.
        spec: Name, dtype and device that it was loaded by.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        spec: LanguageModelSpec,
    ) -> None:
        self.model = model.train(False).requires_grad_(False)
        self.tokenizer = tokenizer
        self.spec = spec
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
            dtype: `float32`, `bfloat16`, `float16` or `float64`; need not be that of the files.
            device: A torch device, or `auto`: CUDA where available, else the CPU.

        Raises:
            InputError: If the model, dtype or device does not exist.
        """
        return cls.load(LanguageModelSpec(name, revision, gguf_file, dtype, device))

    @classmethod
    def load(cls, spec: LanguageModelSpec) -> "LanguageModel":
        """Load a model and its tokenizer.

        Raises:
            InputError: If the model or device does not exist, or the files are not those of a
                causal language model.
        """
        return cls(spec.pretrained_model(), spec.tokenizer(), spec)

    @property
    def name(self) -> str:
        """The name that the model was loaded by."""
        return self.spec.name

    @property
    def revision(self) -> str | None:
        """The requested revision."""
        return self.spec.revision

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model."""
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
        return dict(self.spec.sites.named or self.spec.sites.modules)

    def resolve(self, site: str) -> str:
        """The full name of a site; see `Sites.resolve`."""
        return self.spec.resolve(site)

    def width(self, site: str) -> int:
        """The width of the vectors at a site."""
        return self.spec.width(site)

    def fingerprint(self) -> dict[str, str]:
        """Identity of the weights, the tokenizer and the dtype; no path, no device."""
        return self.spec.fingerprint()

    def tokenize(self, texts: Sequence[str], bos: bool = False) -> Tokens:
        """Tokenize texts without special tokens, right-padded, on the CPU.

        Args:
            texts: Text in which the name of a special token is text like any other.
            bos: Begin each text with the tokenizer's BOS token, as in training with
                `data.bos`. Texts given to `read`, `logits` and `generate` begin without.

        Raises:
            InputError: If a text has no tokens, or more than the model's context, or the tokenizer
                has no BOS token.
        """
        if isinstance(texts, str):
            raise InputError(f"one string, {reprlib.repr(texts)}; give a list of texts")
        start = [bos_id(self.tokenizer)] if bos else []
        ids = [[*start, *found] if found else [] for found in token_ids(self.tokenizer, texts)]
        return self._fitting(Tokens.of(ids))

    def read(self, texts: Texts, sites: Sequence[str], batch_size: int = 32) -> Activations:
        """Read activations at several sites, in one pass over each batch of texts.

        A pass ends where the last of the sites has been read.

        Args:
            texts: Texts, their tokens, or ids of shape `(texts, tokens)` without padding.
            sites: Names of sites, or module paths.
            batch_size: Texts per forward pass.

        Returns:
            Activations under the names of the sites as given, on the model's device.

        Raises:
            InputError: If the model has no such site, or a text has no tokens or more than the
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

    def read_contexts(self, ids: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Read activations of full contexts, without padding.

        Args:
            ids: Token ids, `(contexts, tokens)`.
            sites: Names of sites, or module paths.

        Returns:
            The tensors that the model computed, `(contexts, tokens, width)`, under the names of
            the sites as given; views of larger ones where a site is part of a fused projection.

        Raises:
            InputError: If the model has no such site, or its embedding no such id.
        """
        self._check_ids(ids)
        return self._read(ids.to(self.device, non_blocking=True), sites)

    @torch.no_grad()
    def _read(
        self, ids: Tensor, sites: Sequence[str], mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        taps = {site: self.spec.sites.tap(site) for site in sites}
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
        edit: Edit | None = None,
        keep_error: bool = False,
        source_site: str | None = None,
    ) -> Iterator[None]:
        """Replace a site's activations wherever the model runs in the body of the `with`.

        Replacements nest; at one site the inner one is given what the outer one returned.
        What is read at a replaced site is the replacement.

        Args:
            site: The name of a site, or a module path.
            replacement: A function of activations, `(texts, tokens, width)`, or an autoencoder
                with `encode` and `decode`, whose reconstruction takes their place.
            edit: A function of the autoencoder's latents, applied before they are decoded.
            keep_error: Add what the reconstruction of the unedited latents misses, so that
                nothing but the edit changes.
            source_site: For a transcoder, the site that it reads in the same forward pass, which
                comes before the one that it replaces; default the replaced site itself.

        Raises:
            InputError: If the model has no such site, or the replacement cannot replace it.
        """
        tap = self.spec.sites.tap(site)
        if source_site is None and getattr(replacement, "is_transcoder", False):
            raise InputError(
                f"a transcoder is to replace {site!r}; give the source_site that it reads"
            )
        with ExitStack() as hooks:
            source = None
            if source_site is not None:
                source_tap = self.spec.sites.tap(source_site)
                source = hooks.enter_context(following(self.model, source_tap))
            function = as_function(replacement, edit, keep_error, source)
            # Before the hooks of others, after those of outer replacements.
            first = tap.module not in self._replaced
            hooks.enter_context(replacing(self.model, tap, function, first))
            self._replaced.append(tap.module)
            hooks.callback(self._replaced.remove, tap.module)
            yield

    @torch.no_grad()
    def generate(self, texts: Texts, **options: Any) -> Any:
        """Continue texts with `generate` of transformers.

        Args:
            texts: Texts, their tokens, or ids of shape `(texts, tokens)` without padding.
            options: Options of `generate`, such as `max_new_tokens` and `do_sample`.

        Returns:
            The return value of `generate`: ids, `(texts, tokens)`, where shorter texts are padded
            on the left, so that all end where their continuation begins.
        """
        tokens = self._tokens(texts)
        longest = tokens.ids.shape[1]
        # Column j of a row that is n short is its token j - n; the padding goes to the front.
        columns = torch.arange(longest, device=self.device) + tokens.lengths[:, None]
        columns %= longest
        # A padding token of the tokenizer alone has an id that the model cannot read.
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        pads = [pad for pad in known if isinstance(pad, int) and pad < self._vocabulary]
        options = {"pad_token_id": next(iter(pads), 0)} | options
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
                f"token ids from {low} to {high}; the embedding of {self.name!r} has 0 to "
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
