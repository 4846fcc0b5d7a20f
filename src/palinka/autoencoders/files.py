"""Files of autoencoders: provenance and model card, and folders on disk and on the hub."""

import fnmatch
import glob
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palinka.errors import (
    InputError,
    atomic_write,
    escape_control_chars,
    first_line,
    one_line,
    type_mismatch,
)

Libraries = Mapping[str, tuple[str, ...]]
"""File names, or patterns, that an autoencoder of each library consists of."""

CARD = "README.md"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[^/]+)*")
# Enough for a slow connection; the hub's client would retry for half a minute.
_HUB_SECONDS = 10.0
_MAX_LISTED, _MAX_CELL = 10, 200


@dataclass(frozen=True)
class Provenance:
    """Origin of an autoencoder; every field may be unknown."""

    site: str | None = None  # by palinka's name for it
    language_model: str | None = None  # identity of its weights, the same on every machine
    language_model_name: str | None = None
    hook: str | None = None  # the site, by the name of another library
    module: str | None = None  # of the Hugging Face model, whose output is the site
    corpus: str | None = None  # in a few words
    context_length: int | None = None
    bos: bool | None = None  # whether every context began with a special token
    tokens: int | None = None  # the number of training tokens
    metrics: Mapping[str, float] = field(default_factory=dict)  # measured on held-out text
    license: str = "unknown"  # an identifier of the hub, such as mit

    def to_dict(self) -> dict[str, str | int | bool]:
        """The known facts about model, site and text, as JSON values."""
        facts = {name: getattr(self, name) for name in sorted(_SAVED)}
        return {name: value for name, value in facts.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Provenance":
        """Read what `to_dict` gave, without what is empty or of another type."""
        hints = get_type_hints(cls)
        known = {name: values[name] for name in _SAVED & values.keys() if values[name] != ""}
        return cls(**{n: v for n, v in known.items() if type_mismatch(v, hints[n]) is None})


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
{note}"""
_METRICS = """\
## Measured on held-out text

Errors are of activations as training saw them, centered and scaled where it did that.

{rows}

"""
_LOAD = {
    "palinka": 'import palinka\n\nsae = palinka.Autoencoder.from_pretrained("{folder}")',
    "SAELens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("{folder}")',
    "sparsify": 'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("{folder}")',
}
_LOAD_ANY = 'from palinka.autoencoders import formats\n\nsae, provenance = formats.load("{folder}")'


def model_card(
    autoencoder: Any, provenance: Provenance, library: str = "palinka", inner: str = ".",
    note: str = "",
) -> str:  # fmt: skip
    """Model card in Markdown, in which text from other files is never markup.

    For a folder in the format of `palinka`, `SAELens` or `sparsify`, which loads the folder `inner`
    within; it ends with the note, which is Markdown.
    """
    facts = {
        "architecture": type(autoencoder).__name__,
        "activations' width": autoencoder.input_dim,
        "latents": autoencoder.latent_dim,
        "latents per token (k)": getattr(autoencoder, "k", None),
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
    code = _LOAD[library].format(folder=folder)
    if library != "palinka":
        note = f"\nWith {library}:\n\n```python\n{code}\n```\n{note}"
        code = _LOAD_ANY.format(folder=folder)
    bounded = any(name.endswith("/low") for name in provenance.metrics)
    rows = [["metric", "value", "95 % interval over documents"], ["---"] * 3]
    for name, value in provenance.metrics.items():
        split, _, metric = name.partition("/")
        if not split.endswith("_interval"):
            ends = (f"{split}_interval/{metric}/{end}" for end in ("low", "high"))
            bounds = [f"{provenance.metrics[end]:.5g}" for end in ends if end in provenance.metrics]
            rows.append([_cell(name), f"{value:.5g}", " to ".join(bounds)])
    table = "\n".join(f"| {' | '.join(row[: 2 + bounded])} |" for row in rows)
    return _CARD.format(
        license=json.dumps(provenance.license),
        library=json.dumps(library),
        facts="\n".join(f"| {k} | {_cell(v)} |" for k, v in facts.items() if v is not None),
        metrics=_METRICS.format(rows=table) if provenance.metrics else "",
        code=code,
        note=note,
    )


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return f"`{json.dumps(value)}`"
    text = escape_control_chars(value)
    text = text if len(text) <= _MAX_CELL else text[:_MAX_CELL] + "…"
    return "`{}`".format(text.replace("`", "\\x60").replace("|", "\\x7c"))


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable JSON file: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, MemoryError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a complete safetensors file: {error}") from error


def write_files(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write tensors (`.safetensors`), objects (`.json`) or texts into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with atomic_write(folder / name) as file:
                if name.endswith(".safetensors"):
                    # Copies, since the format has no tensors that share memory.
                    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in content.items()}
                    save_file(tensors, file.name, metadata={"format": "pt"})
                else:
                    text = content if isinstance(content, str) else json.dumps(content, indent=2)
                    file.write(text.encode())
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot save into {folder}: {error}; choose a writable folder") from error


def identify(names: Iterable[str], where: str, libraries: Libraries) -> tuple[str, list[str]]:
    """Identify the library that saved a folder `where`, by the relative paths of its files.

    The first that fits, with the files of the autoencoder; an error names those in folders within.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        folders[folder].append(file)
    named = {name for patterns in libraries.values() for name in patterns}
    found: dict[str, tuple[str, list[str]]] = {}
    for folder, here in folders.items():
        for library, patterns in libraries.items():
            matched = [(pattern, n) for pattern in patterns for n in fnmatch.filter(here, pattern)]
            # A wildcard leaves out the names of all libraries.
            matching = [n for pattern, n in matched if n == pattern or n not in named]
            if len(matching) == len(patterns):
                found.setdefault(folder, (library, matching))
    if "" in found:
        return found[""]
    if inside := list(found)[:_MAX_LISTED]:
        held = f"{where} holds autoencoders in {', '.join(inside)}"
        raise InputError(f"{held}: give one of them, such as {where}/{inside[0]}")
    expected = "; ".join(f"{' + '.join(files)} ({name})" for name, files in libraries.items())
    held = ", ".join(folders[""][:_MAX_LISTED]) or "no files"
    raise InputError(f"{where} holds {held}: expected {expected}")


def find_folder(
    where: str | PathLike[str], revision: str | None, libraries: Libraries
) -> tuple[Path, str, list[str]]:
    """Find an autoencoder's folder on disk, or download its files from the Hugging Face hub.

    `where` is a folder, or `owner/repository[/folder]` on the hub, whose cache serves where it
    cannot be reached. Returns the folder, the library that saved it, and the autoencoder's files.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = _download(str(where), revision, libraries)
    elif revision is not None:
        raise InputError(f"{where} is a folder, and only the hub has revisions; leave it out")
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return folder, *identify(names, str(where), libraries)


def _download(where: str, revision: str | None, libraries: Libraries) -> Path:
    if Path(where).exists() or not _HUB_NAME.fullmatch(where):
        raise InputError(f"no folder {where}: give a folder, or owner/repository on the hub")
    from huggingface_hub import HfApi, snapshot_download

    owner, name, *inner = where.split("/")
    repo, prefix = f"{owner}/{name}", "".join(f"{part}/" for part in inner)
    files = [file for names in libraries.values() for file in names]
    reason: Exception | None = None
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:  # any HTTP client's
        reason = error
    else:
        names = [sibling.rfilename for sibling in info.siblings or []]
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        files = identify(inside, where, libraries)[1]
    patterns, offline = [glob.escape(prefix) + file for file in files], reason is not None
    try:
        root = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, local_files_only=offline
        )
    except Exception as error:  # as above
        fault = f"no folder {where}, and {repo}{f' at {revision}' if revision else ''} could not be"
        source = f"loaded from the Hugging Face hub ({one_line(reason or error)})"
        hint = "check the name, log in for a private repository, or go online"
        raise InputError(f"{fault} {source}: {hint}") from error
    return Path(root, *inner)
