"""The page that an exported folder carries: what is in it, and how to load it."""

import json
import re
from typing import Any

from palinka.autoencoders.base import Autoencoder
from palinka.autoencoders.formats.architectures import plain
from palinka.autoencoders.formats.origin import Origin
from palinka.autoencoders.formats.plain import TopK
from palinka.printable import printable

CARD = "README.md"

_LONGEST = 200
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,40}")
# How the reader of a folder's card loads it there; `{0}` is the folder's name within.
_ELSEWHERE = {
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("DIR")',
    "sparsify": 'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("DIR/{0}")',
}
_NAMES = {"saelens": "SAELens", "sparsify": "sparsify", "palinka": "palinka"}
_TIES = (
    "Its top-k keeps exactly k latents of a token; palinka's keeps all that tie with the k-th"
    " largest. They differ only where two values are equal to the last bit."
)
_MEASURED = "Errors are of activations as training saw them, centered and scaled where it did that."
# How the bounds of `val/…` begin: `val_interval/…/low` and `…/high`.
_INTERVAL = "_interval"


def model_card(autoencoder: Autoencoder, origin: Origin, library: str, inner: str = ".") -> str:
    """A model card in Markdown, in which nothing that others wrote is markup.

    Args:
        autoencoder: What the folder holds.
        origin: Where it comes from.
        library: One of `saelens`, `sparsify` and `palinka`, whose format the folder has.
        inner: The folder within, for sparsify.
    """
    config = autoencoder.config()
    facts = {
        "architecture": type(autoencoder).__name__,
        "activations' width": config["input_dim"],
        "latents": config["latent_dim"],
        "latents per token (k)": config.get("k"),
        "language model": origin.language_model,
        "weights of the model": origin.identity,
        "site": origin.site or origin.hook,
        "corpus": origin.corpus,
        "context length": origin.context_length,
        "begins each context with a special token": origin.bos,
        "tokens trained on": None if origin.tokens is None else f"{origin.tokens:,}",
        "license": origin.license,
    }
    lines = [
        "---",
        f"license: {json.dumps(origin.license)}",
        f"library_name: {json.dumps(_NAMES[library])}",
        "tags: [sparse-autoencoder, interpretability, palinka]",
        "---",
        "",
        "# A sparse autoencoder",
        "",
        "It takes activations of a language model apart into latents, few of them active at a"
        " time. Centering and scaling are part of the weights: it takes raw activations.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None),
        "",
        *_measured(origin),
        "## Load it",
        "",
        "```python",
        "import palinka",
        "",
        f'sae = palinka.Autoencoder.from_pretrained("{_path(inner)}")',
        "latents = sae.encode(activations)  # (…, latents)",
        "```",
        "",
    ]
    if library in _ELSEWHERE:
        code = _ELSEWHERE[library].format(_path(inner).removeprefix("DIR/"))
        lines += [f"With {_NAMES[library]}:", "", "```python", code, "```", ""]
        if isinstance(plain(autoencoder).activation, TopK):
            lines += [_TIES, ""]
    return "\n".join(lines)


def is_license(text: str) -> bool:
    """Whether text could be a license's identifier, such as `mit` or `cc-by-4.0`."""
    return _LICENSE.fullmatch(text) is not None


def _measured(origin: Origin) -> list[str]:
    rows = []
    for name, value in origin.metrics.items():
        split, _, metric = name.partition("/")
        if split.endswith(_INTERVAL):
            continue
        low, high = (
            origin.metrics.get(f"{split}{_INTERVAL}/{metric}/{end}") for end in ("low", "high")
        )
        known = low is not None and high is not None
        between = f"{low:.5g} to {high:.5g}" if known else ""
        rows.append(f"| {_cell(name)} | {value:.5g} | {between} |")
    if not rows:
        return []
    head = ["| metric | value | 95 % interval over documents |", "|---|---|---|"]
    return ["## Measured on held-out text", "", _MEASURED, "", *head, *rows, ""]


def _path(inner: str) -> str:
    """`DIR`, or a folder within, as it may stand between the quotes of a program."""
    if inner == ".":
        return "DIR"
    return "DIR/" + re.sub(r"[^\w.\-]", "_", inner)


def _cell(value: Any) -> str:
    """A value as code within a table: shown as it is, and never as markup."""
    if not isinstance(value, str):
        return f"`{json.dumps(value)}`"
    text = printable(value)
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return "`{}`".format(text.replace("`", "\\x60").replace("|", "\\x7c"))
