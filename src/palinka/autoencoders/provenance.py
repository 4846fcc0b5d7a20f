"""Provenance of an autoencoder, and the model card that states it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from palinka.errors import escape_control_chars, type_mismatch

CARD = "README.md"


@dataclass(frozen=True)
class Provenance:
    """Origin of an autoencoder; every field may be unknown.

    Attributes:
        site: The site, by palinka's name for it.
        language_model: Identity of the model's weights, the same on every machine.
        language_model_name: The model's name.
        hook: The site, by the name of another library.
        module: The module of the Hugging Face model whose output is the site.
        corpus: The training text, in a few words.
        context_length: Tokens per context.
        bos: Whether every context began with a special token.
        tokens: Number of training tokens.
        metrics: Measured on held-out text, by name.
        license: An identifier of the hub, such as `mit`.
    """

    site: str | None = None
    language_model: str | None = None
    language_model_name: str | None = None
    hook: str | None = None
    module: str | None = None
    corpus: str | None = None
    context_length: int | None = None
    bos: bool | None = None
    tokens: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    license: str = "unknown"

    def to_dict(self) -> dict[str, str | int | bool]:
        """The known facts about model, site and text, as JSON values."""
        return {
            name: value for name in sorted(_SAVED) if (value := getattr(self, name)) is not None
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Provenance":
        """Read what `to_dict` gave, without what is empty or of another type."""
        hints = get_type_hints(cls)
        known = {name: values[name] for name in _SAVED & values.keys() if values[name] != ""}
        return cls(
            **{n: value for n, value in known.items() if type_mismatch(value, hints[n]) is None}
        )


_SAVED = Provenance.__dataclass_fields__.keys() - {"tokens", "metrics", "license"}

_CARD = """\
---
license: {license}
library_name: {library}
tags: [sparse-autoencoder, interpretability, palinka]
---

# A sparse autoencoder

It decomposes activations of a language model into latents, few of them active at a time.
Centering and scaling are part of the weights: it takes raw activations.

| | |
|---|---|
{facts}

{metrics}## Load it

```python
{code}
latents = sae.encode(activations)  # (…, latents)
```
{other}"""
_METRICS = """\
## Measured on held-out text

Errors are of activations as training saw them, centered and scaled where it did that.

| metric | value | 95 % interval over documents |
|---|---|---|
{rows}

"""
_OWN_CODE = 'import palinka\n\nsae = palinka.Autoencoder.from_pretrained("{folder}")'
_FOREIGN_CODE = (
    'from palinka.autoencoders import formats\n\nsae, provenance = formats.load("{folder}")'
)
_OTHERS = {
    "saelens": ("SAELens", 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("{folder}")'),
    "sparsify": (
        "sparsify",
        'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("{folder}")',
    ),
}
_MAX_CELL = 200


def model_card(
    architecture: str,
    config: Mapping[str, Any],
    provenance: Provenance,
    library: str = "palinka",
    inner: str = ".",
    note: str = "",
) -> str:
    """Model card in Markdown, in which text from other files is never markup.

    Args:
        architecture: Class name of the autoencoder.
        config: Its constructor's arguments.
        provenance: Its provenance.
        library: `palinka`, `saelens` or `sparsify`, whose format the folder has.
        inner: The folder within that the library loads.
        note: Markdown for its end.
    """
    facts = {
        "architecture": architecture,
        "activations' width": config["input_dim"],
        "latents": config["latent_dim"],
        "latents per token (k)": config.get("k"),
        "language model": provenance.language_model_name,
        "weights of the model": provenance.language_model,
        "site": provenance.site or provenance.hook,
        "corpus": provenance.corpus,
        "context length": provenance.context_length,
        "begins each context with a special token": provenance.bos,
        "tokens trained on": None if provenance.tokens is None else f"{provenance.tokens:,}",
        "license": provenance.license,
    }
    folder = "DIR" if inner == "." else "DIR/" + re.sub(r"[^\w.\-]", "_", inner)
    name, code = _OTHERS.get(library, (library, ""))
    other = f"\nWith {name}:\n\n```python\n{code.format(folder=folder)}\n```\n" if code else ""
    rows = list(_metric_rows(provenance.metrics))
    return _CARD.format(
        license=json.dumps(provenance.license),
        library=json.dumps(name),
        facts="\n".join(f"| {k} | {_cell(v)} |" for k, v in facts.items() if v is not None),
        metrics=_METRICS.format(rows="\n".join(rows)) if rows else "",
        code=(_FOREIGN_CODE if code else _OWN_CODE).format(folder=folder),
        other=other + note,
    )


def _metric_rows(metrics: Mapping[str, float]) -> Iterator[str]:
    """Table rows; the bounds of `val/…` are `val_interval/…/low` and `…/high`."""
    for name, value in metrics.items():
        split, _, metric = name.partition("/")
        if split.endswith("_interval"):
            continue
        low, high = (metrics.get(f"{split}_interval/{metric}/{end}") for end in ("low", "high"))
        interval = f"{low:.5g} to {high:.5g}" if low is not None and high is not None else ""
        yield f"| {_cell(name)} | {value:.5g} | {interval} |"


def _cell(value: Any) -> str:
    """A value as code within a table cell, with control characters and markup escaped."""
    if not isinstance(value, str):
        return f"`{json.dumps(value)}`"
    text = escape_control_chars(value)
    text = text if len(text) <= _MAX_CELL else text[:_MAX_CELL] + "…"
    return "`{}`".format(text.replace("`", "\\x60").replace("|", "\\x7c"))
