"""Language models whose activations can be read and replaced."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from palinka.errors import InputError, brief
from palinka.language_models.attention import What, attending, attention_module, visit_attention
from palinka.language_models.edits import Edit, Replacement, as_function
from palinka.language_models.sites import Heads, by_token, checked, following, reading, replacing
from palinka.language_models.spec import LanguageModelSpec, Mode, Treatment
from palinka.language_models.token_text import bos_id, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Activations(dict[str, Tensor]):
    """Activations by site, `(texts, tokens, width)` each and zero where a text has no token.

    Beside them the ids of the `tokens`, padded on the right, and their `mask`, as in `Tokens`.
    """

    def __init__(self, sites: Mapping[str, Tensor], tokens: Tensor, mask: Tensor) -> None:
        super().__init__(sites)
        self.tokens, self.mask = tokens, mask

    def __repr__(self) -> str:
        return f"Activations({', '.join(f'{site}: {brief(x)}' for site, x in self.items())})"

    def __missing__(self, site: str) -> Tensor:
        raise InputError(f"{site!r} was not read, only {', '.join(self)}; give it to read(sites=…)")


@dataclass(frozen=True)
class Tokens:
    """Token ids of several texts, padded on the right."""

    ids: Tensor  # `(texts, tokens)`, int64; any valid id in padding
    mask: Tensor  # the same; 1 for a token, 0 for padding

    def __repr__(self) -> str:
        return f"Tokens({len(self.ids)} texts of {self.lengths.tolist()[:20]} tokens)"

    def __post_init__(self) -> None:
        ids, mask = self.ids, self.mask
        matching = ids.ndim == 2 and ids.shape == mask.shape and ids.numel()
        if not matching or not mask[:, 0].all() or (mask[:, 1:] > mask[:, :-1]).any():
            given = f"ids {tuple(ids.shape)} with a mask {tuple(mask.shape)}"
            raise InputError(f"{given}; give both as (texts, tokens), padded on the right only")

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Tokens":
        """Pad sequences of ids, none of them empty, to the longest."""
        empty = [index for index, sequence in enumerate(sequences) if not len(sequence)]
        if empty or not sequences:
            given = f"texts {empty} without a token" if empty else "an empty list of texts"
            raise InputError(f"{given}; give at least one text, and leave empty ones out")
        rows = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
        ones = [torch.ones_like(row) for row in rows]
        return cls(pad_sequence(rows, batch_first=True), pad_sequence(ones, batch_first=True))

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each text, `(texts,)`."""
        return self.mask.sum(1)


Texts = str | Sequence[str] | Tokens | Tensor


@dataclass(eq=False)
class LanguageModel:
    """A causal language model of Hugging Face with its tokenizer and the names of its sites.

    Attributes:
        model: The model, in evaluation mode, its parameters without gradients.
        tokenizer: Its tokenizer, as it was loaded.
        spec: Name, dtype and device that it was loaded by.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    spec: LanguageModelSpec
    _replaced: list[str] = field(default_factory=list, init=False)

    def __repr__(self) -> str:
        spec = f"{self.spec.name!r}, {self.spec.dtype} on {self.device}"
        return f"LanguageModel({spec}, {len(self.sites)} sites)"

    def __new__(cls, *given: Any, **_: Any) -> "LanguageModel":
        """Reject the name of a model in place of the model."""
        if len(given) == 1 and isinstance(given[0], str):
            raise InputError(f"load a model with LanguageModel.from_pretrained({given[0]!r})")
        return super().__new__(cls)

    @classmethod
    def from_pretrained(
        cls, name: str = "mini", *, revision: str | None = None, gguf_file: str | None = None,
        dtype: str = "float32", device: str = "auto",
    ) -> "LanguageModel":  # fmt: skip
        """Load a model; the arguments are those of `LanguageModelSpec`."""
        return cls.load(LanguageModelSpec(name, revision, gguf_file, dtype, device))

    @classmethod
    def load(cls, spec: LanguageModelSpec) -> "LanguageModel":
        """Load a model and its tokenizer by their specification."""
        return cls(spec.pretrained_model(), spec.tokenizer(), spec)

    def randomized(
        self, mode: Mode = "permuted", embeddings: Treatment = "keep", norms: Treatment = "keep",
        seed: int = 0,
    ) -> "LanguageModel":  # fmt: skip
        """Load a control of this model: the same text and sites, and nothing that was learned.

        Args:
            mode: `permuted` shuffles the entries of each weight tensor, `gaussian` draws them
                with its mean and standard deviation, `initial` as before training. `tokens` reads
                the tokens of a text in random order, all but the first, and returns what is read
                in theirs; `embeddings` reads a random vector at every position; `coordinates`
                shuffles those of every vector that is read, after the pass.
            embeddings: `keep` leaves out embeddings of tokens and positions and the unembedding.
            norms: `keep` leaves out normalization layers.
            seed: Seed of the draws.

        Example:
            >>> from palinka.language_models import LanguageModel
            >>> LanguageModel.from_pretrained("mini").randomized().spec.control
            'permuted'

        Source:
            Heap et al. (2025), arXiv 2501.17727.
        """
        control = replace(
            self.spec, control=mode, control_embeddings=embeddings, control_norms=norms,
            control_seed=seed,
        )  # fmt: skip
        return LanguageModel.load(control)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return torch.device(self.model.device)

    @property
    def unembedding(self) -> Any:
        """The module from final states to logits."""
        output: Any = self.model.get_output_embeddings
        return output()

    @property
    def context_length(self) -> int:
        """The largest number of tokens of a text."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(self.tokenizer.model_max_length if limit is None else limit)

    @property
    def sites(self) -> dict[str, int]:
        """The width of every named site in the order of the forward pass, or of every module."""
        sites = self.spec.sites
        return {name: sites.widths[name] for name in sites.taps or sites.widths}

    @property
    def heads(self) -> Heads:
        """The attention heads of every block; an `InputError` where sites have no names."""
        if (found := self.spec.sites.heads) is None:
            raise InputError(f"sites of {self.spec.name} have no names; choose another model")
        return found

    def width(self, site: str) -> int:
        """The width of the vectors at a site."""
        return self.spec.sites.width(site)

    def tokenize(self, texts: str | Sequence[str], bos: bool = False) -> Tokens:
        """Tokenize one or several texts without special tokens, right-padded, on the CPU.

        Args:
            texts: Text in which the name of a special token is text like any other.
            bos: Begin with the tokenizer's BOS token, as `data.bos` does, and `read` does not.
        """
        texts = [texts] if isinstance(texts, str) else texts
        start = [bos_id(self.tokenizer)] if bos else []
        ids = [[*start, *found] if found else [] for found in token_ids(self.tokenizer, texts)]
        return self._checked(Tokens.of(ids))

    def read(self, texts: Texts, sites: str | Sequence[str], batch_size: int = 32) -> Activations:
        """Read activations at one or several sites, in one pass over each batch of texts.

        A pass ends where the last of the sites has been read.

        Args:
            texts: One or several texts, their tokens, or ids `(texts, tokens)` without padding.
            sites: Names of sites, or module paths.
            batch_size: Texts per forward pass.

        Returns:
            Activations under the names of the sites as given, on the model's device; an
            `InputError` if there is no such site.
        """
        sites = [sites] if isinstance(sites, str) else sites
        if not sites:
            raise InputError("sites is an empty list; give at least one")
        tokens = self._tokens(texts)
        activations: dict[str, Tensor] = {}
        for start in range(0, len(tokens.ids), batch_size):
            batch = slice(start, start + batch_size)
            part = (batch, slice(int(tokens.lengths[batch].max())))
            for site, values in self._read(tokens.ids[part], sites, tokens.mask[part]).items():
                if site not in activations:
                    activations[site] = values.new_zeros(*tokens.ids.shape, values.shape[-1])
                activations[site][part] = _without_padding(values, tokens.mask[part])
        return Activations(activations, tokens.ids, tokens.mask)

    def read_contexts(self, ids: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Read activations of full contexts of ids, `(contexts, tokens)`, without a copy.

        They are the model's own, `(contexts, tokens, width)`, or views of larger tensors.
        """
        self._checked(Tokens(ids, torch.ones_like(ids)))
        return self._read(ids.to(self.device, non_blocking=True), sites)

    @torch.no_grad()
    def _read(
        self, ids: Tensor, sites: Sequence[str], mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        ids, back = self._in_order(ids, mask)
        with reading(self.model, {site: self.spec.sites.tap(site) for site in sites}) as found:
            self._forward(ids, mask)
        per_token: dict[str, Any] = {site: by_token(found[site], *ids.shape) for site in sites}
        if self.spec.control == "coordinates":
            from palinka.language_models.randomized import shuffled_coordinates

            seed = self.spec.control_seed
            return {site: shuffled_coordinates(x, ids, seed) for site, x in per_token.items()}
        return {site: back(values) for site, values in per_token.items()}

    def _in_order(
        self, ids: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Ids as the model reads them, and the way back, which differ in the control `tokens`."""
        if self.spec.control != "tokens":
            return ids, lambda values: values
        from palinka.language_models.randomized import token_order

        order = token_order(ids, mask, self.spec.control_seed)
        places = order.argsort(dim=1)[..., None]
        return ids.gather(1, order), lambda values: values.take_along_dim(places, 1)

    def _forward(self, ids: Tensor, mask: Tensor | None) -> Any:
        # Without a mask the model may take its fast path for causal attention.
        padded = mask is not None and not bool(mask.all())
        return self.model(input_ids=ids, attention_mask=mask if padded else None, use_cache=False)

    def attention(
        self, texts: Texts, layers: int | Sequence[int] | None = None, what: What = "pattern",
        batch_size: int = 32,
    ) -> dict[int, Tensor]:  # fmt: skip
        """Read attention patterns, or scores, by block: `(texts, heads, queries, keys)`.

        Memory grows with the squared number of tokens: give few texts, or few layers.

        Args:
            texts: As in `read`.
            layers: Numbers of blocks; default all.
            what: `"pattern"`, or `"scores"`: what the softmax is given, before the mask is added,
                and -inf where the mask leaves a key out.
            batch_size: Texts per forward pass.

        Returns:
            Attention by block, on the model's device, 0 for queries beyond a text's length; an
            `InputError` if there is no such block.
        """
        tokens, found = self._tokens(texts), dict[int, Tensor]()

        def keep(batch: slice, layer: int, values: Tensor) -> None:
            heads, longest, _ = values.shape[1:]
            if layer not in found:
                shape, fill = tokens.ids.shape, 0.0 if what == "pattern" else -torch.inf
                found[layer] = values.new_full((shape[0], heads, shape[1], shape[1]), fill)
                found[layer].masked_fill_(tokens.mask[:, None, :, None] == 0, 0.0)
            found[layer][batch, :, :longest, :longest] = values

        visit_attention(self, tokens, keep, layers, what, batch_size)
        return found

    @torch.no_grad()
    def logits(self, texts: Texts) -> Tensor:
        """Next-token logits, `(texts, tokens, vocabulary)`, zero where a text has no token."""
        tokens = self._tokens(texts)
        ids, back = self._in_order(tokens.ids, tokens.mask)
        return _without_padding(back(self._forward(ids, tokens.mask).logits), tokens.mask)

    @torch.no_grad()
    def run_from(self, site: str, states: Tensor) -> Tensor:
        """Next-token logits, `(texts, tokens, vocabulary)`, of states of the residual stream.

        The blocks before are left out; later sites can be read and replaced as in any pass.

        Args:
            site: `hidden.{i}` or `blocks.{i}.resid`.
            states: `(texts, tokens, width)`, of texts without padding.
        """
        sites, name = self.spec.sites, self.spec.sites.resolve(site)
        match = re.fullmatch(r"(?:hidden|blocks)\.(\d+)(\.resid)?", name)
        if match is None or name == f"hidden.{sites.layers}":
            raise InputError(f"no pass begins at {name}; give hidden.{{i}} or blocks.{{i}}.resid")
        if states.ndim != 3 or states.shape[2] != self.width(name):
            given = f"states have the shape {tuple(states.shape)}"
            raise InputError(f"{given}; expected (texts, tokens, {self.width(name)})")
        states = states.to(self.device, self.model.dtype)
        with sites.starting(self.model, int(match[1]) + bool(match[2]), lambda _: states):
            row = torch.zeros(1, states.shape[1], dtype=torch.long, device=self.device)
            logits: Tensor = self.model(input_ids=row, use_cache=False).logits
        return logits

    @contextmanager
    def replaced(
        self, site: str, replacement: Replacement, edit: Edit | None = None,
        keep_error: bool = False, source_site: str | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """Replace a site's activations wherever the model runs in the body of the `with`.

        Replacements nest; at one site the inner one is given what the outer one returned.
        What is read at a replaced site is the replacement. An unknown site is an `InputError`.

        Args:
            site: The name of a site, or a module path.
            replacement: A function of activations, `(texts, tokens, width)`, or an autoencoder
                with `encode` and `decode`, whose reconstruction takes their place. At
                `blocks.{i}.attn.pattern` and `.scores` a function of what `attention` returns;
                other blocks' attention then has the rounding of eager attention, too.
            edit: A function of the autoencoder's latents, applied before they are decoded.
            keep_error: Add what the reconstruction of the unedited latents misses, so that
                nothing but the edit changes.
            source_site: For a transcoder, the site that it reads in the same forward pass, which
                comes before the one that it replaces; default the replaced site itself.
        """
        if attention := self.spec.sites.attention(site):
            module = attention_module(self.model, self.spec.sites, attention[0])
            change = as_function(replacement, edit, keep_error)

            def act(values: Tensor) -> Tensor:
                return checked(change(values), values, site)

            with attending(self.model, [(module, attention[1], act)]):
                yield
            return
        tap = self.spec.sites.tap(site)
        if tap.projected:
            raise InputError(f"{site} can only be read; replace {site.replace('result', 'z')}")
        if source_site is None and getattr(replacement, "is_transcoder", False):
            raise InputError(f"a transcoder replaces {site!r}; give the source_site that it reads")
        with ExitStack() as hooks:
            source = None
            if source_site is not None:
                source_tap = self.spec.sites.tap(source_site)
                source = hooks.enter_context(following(self.model, source_tap))
            function = as_function(replacement, edit, keep_error, source)
            # Before the hooks of others, after those of outer replacements.
            first = tap.module not in self._replaced
            hooks.enter_context(replacing(self.model, tap, function, first))
            hooks.callback(self._replaced.remove, tap.module)
            self._replaced.append(tap.module)
            yield

    @torch.no_grad()
    def generate(self, texts: Texts, **options: Any) -> Any:
        """Continue texts with `generate` of transformers and its options.

        To ids, `(texts, tokens)`, where shorter texts are padded on the left, so that all end where
        their continuation begins.
        """
        tokens = self._tokens(texts)
        # Column j of a row that is n short is its token j - n; the padding goes to the front.
        longest = tokens.ids.shape[1]
        columns = (torch.arange(longest, device=self.device) + tokens.lengths[:, None]) % longest
        # A padding token of the tokenizer alone has an id that the model cannot read.
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        pads = [pad for pad in known if pad is not None and pad < self.model.config.vocab_size]
        given = {"pad_token_id": pads[0], "attention_mask": tokens.mask.gather(1, columns)}
        generate: Any = self.model.generate
        return generate(tokens.ids.gather(1, columns), **given | options)

    def _tokens(self, texts: Texts) -> Tokens:
        if isinstance(texts, Tensor):
            texts = Tokens(texts.long(), torch.ones_like(texts, dtype=torch.long))
        tokens = self._checked(texts) if isinstance(texts, Tokens) else self.tokenize(texts)
        return Tokens(tokens.ids.to(self.device), tokens.mask.to(self.device))

    def _checked(self, tokens: Tokens) -> Tokens:
        low, high = int(tokens.ids.min()), int(tokens.ids.max())
        last = int(self.model.config.vocab_size) - 1
        if low < 0 or high > last:
            raise InputError(f"token ids {low} to {high}; expected 0 to {last}: use its tokenizer")
        longest, limit = int(tokens.lengths.max()), self.context_length
        if longest > limit:
            text = int(tokens.lengths.argmax())
            raise InputError(f"text {text} has {longest} tokens; a context has at most {limit}")
        return tokens


def _without_padding(values: Tensor, mask: Tensor) -> Tensor:
    return values if bool(mask.all()) else values.masked_fill(mask[..., None] == 0, 0)
