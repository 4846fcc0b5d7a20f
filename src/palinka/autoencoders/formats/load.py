"""Load and save dictionaries of other libraries."""

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, cast

import torch
from torch import Tensor

from palinka.autoencoders import base as pretrained
from palinka.autoencoders.base import CONFIG, WEIGHTS, Autoencoder, read_config
from palinka.autoencoders.base import save as save_palinka
from palinka.autoencoders.batch_topk import BatchTopKAutoencoder
from palinka.autoencoders.formats import dictionary_learning, openai, saelens, sparsify
from palinka.autoencoders.formats.common import (
    Activation,
    BatchTopK,
    Gate,
    Origin,
    Plain,
    ReLU,
    Threshold,
    TopK,
    object_of,
    origin_of,
    write_text,
)
from palinka.autoencoders.gated import GatedAutoencoder
from palinka.autoencoders.jumprelu import JumpReLUAutoencoder
from palinka.autoencoders.ksparse import KSparseAutoencoder, LayerNormalizedAutoencoder
from palinka.autoencoders.matryoshka import MatryoshkaAutoencoder
from palinka.autoencoders.relu import ReLUAutoencoder
from palinka.autoencoders.scaling import InputScaling
from palinka.autoencoders.topk import TopKAutoencoder
from palinka.errors import InputError, escape_control_chars

# What an autoencoder makes of its encoder's values. A subclass may compute something else, so
# that only these very classes are known.
_ACTIVATIONS: dict[type[Autoencoder], Callable[[Any], Activation]] = {
    KSparseAutoencoder: lambda ours: TopK(ours.k),
    LayerNormalizedAutoencoder: lambda ours: TopK(ours.k),
    TopKAutoencoder: lambda ours: TopK(ours.k),
    BatchTopKAutoencoder: lambda ours: BatchTopK(ours.k, ours.threshold),
    MatryoshkaAutoencoder: lambda ours: BatchTopK(ours.k, ours.threshold),
    ReLUAutoencoder: lambda _: ReLU(),
    JumpReLUAutoencoder: lambda ours: Threshold(ours.threshold),
    GatedAutoencoder: lambda ours: Gate(ours.magnitude_bias, ours.log_magnitude),
}


def is_known(kind: type[Autoencoder]) -> bool:
    """Whether a class is one of these, and no subclass of one."""
    return kind in _ACTIVATIONS


@torch.no_grad()
def plain(autoencoder: Autoencoder) -> Plain:
    """The weights of an autoencoder, as other libraries can hold them.

    Raises:
        InputError: If it is of a class that no other library knows, or a transcoder.
    """
    if autoencoder.is_transcoder:
        raise InputError("a transcoder can be saved in palinka's own format only: choose that")
    activation = _ACTIVATIONS.get(type(autoencoder))
    if activation is None:
        raise InputError(
            f"a {type(autoencoder).__name__} is of no architecture that other libraries know:"
            " save it in palinka's own format"
        )
    ours = cast(Any, autoencoder)
    bias = ours.gate_bias if isinstance(autoencoder, GatedAutoencoder) else ours.encoder.bias
    read = ours.decoder_bias
    weight: Tensor = ours.encoder.weight.detach()
    zeros = weight.new_zeros
    return Plain(
        encoder=weight,
        encoder_bias=zeros(autoencoder.latent_dim) if bias is None else bias.detach(),
        decoder=autoencoder.dictionary.detach(),
        decoder_bias=zeros(autoencoder.input_dim) if read is None else read.detach(),
        activation=activation(ours),
        subtracts=getattr(ours, "subtract_decoder_bias", True),
        normalizes=isinstance(autoencoder, LayerNormalizedAutoencoder),
    )


@torch.no_grad()
def built(weights: Plain) -> Autoencoder:
    """An autoencoder of ours with given weights, on the CPU.

    Raises:
        InputError: If none of ours computes the same.
    """
    if weights.normalizes and not isinstance(weights.activation, TopK):
        raise InputError(
            "activations that are layer-normed before encoding are known here with top-k only, not"
            f" with {type(weights.activation).__name__}"
        )
    if weights.normalizes:
        weights = weights.subtracting()
    ours = _made(weights)
    own = {
        "encoder.weight": weights.encoder,
        "decoder_weight": weights.decoder,
        "decoder_bias": weights.decoder_bias,
    }
    match weights.activation:
        case Threshold(threshold):
            # A threshold below zero does what zero does, since a ReLU comes first.
            own["log_threshold"] = threshold.clamp(min=0).log()
        case BatchTopK(_, threshold):
            own["threshold"] = threshold.clamp(min=0)
        case Gate(magnitude_bias, log_magnitude):
            own["magnitude_bias"], own["log_magnitude"] = magnitude_bias, log_magnitude
    gated = isinstance(weights.activation, Gate)
    own["gate_bias" if gated else "encoder.bias"] = weights.encoder_bias
    ours.load_state_dict(own)
    return ours


def _made(weights: Plain) -> Autoencoder:
    """An autoencoder of the right class and size, with fresh weights."""
    size, read = (weights.width, weights.latents), weights.subtracts
    match weights.activation:
        case TopK(k) if weights.normalizes:
            return LayerNormalizedAutoencoder(
                *size, k, tied=False, encoder_bias=True, decoder_bias=True
            )
        case TopK(k):
            return TopKAutoencoder(*size, k, subtract_decoder_bias=read, unit_norm=False)
        case BatchTopK(k):
            return BatchTopKAutoencoder(*size, k, subtract_decoder_bias=read, unit_norm=False)
        case ReLU():
            return ReLUAutoencoder(*size, subtract_decoder_bias=read, unit_norm=False)
        case Threshold():
            return JumpReLUAutoencoder(*size, subtract_decoder_bias=read, unit_norm=False)
        case Gate():
            return GatedAutoencoder(*size, subtract_decoder_bias=read, unit_norm=False)


# A mean and a scale.
Constants = tuple[Tensor, float]


@torch.no_grad()
def fold(
    autoencoder: Autoencoder, scaling: InputScaling, target_scaling: InputScaling | None = None
) -> Autoencoder:
    """An autoencoder of raw activations that does what one did with centered and scaled ones.

    Its latents are the same, and its reconstruction is what `inverse` of the scaling makes of the
    other's. Where there is a scale, directions that had norm 1 have norm `1 / scale`, and what was
    tied is not any longer.

    Args:
        autoencoder: Stays as it is.
        scaling: What the activations went through.
        target_scaling: What those went through that a transcoder gives.

    Returns:
        A new autoencoder of the same class, on the CPU.

    Raises:
        InputError: If its class is one of somebody else's, which may do more with activations.
    """
    read = _constants(scaling)
    written = read if target_scaling is None else _constants(target_scaling)
    kind, config = type(autoencoder), dict(autoencoder.config())
    weights = {name: tensor.detach().cpu() for name, tensor in autoencoder.state_dict().items()}
    if any(scale != 1.0 or bool(mean.any()) for mean, scale in (read, written)):
        if not is_known(kind) or kind is LayerNormalizedAutoencoder:
            raise InputError(
                f"centering and scaling cannot be taken into the weights of a {kind.__name__}:"
                " keep the checkpoint, or train without center and unit_norm"
            )
        weights = {name: tensor.double() for name, tensor in weights.items()}
        if isinstance(autoencoder, KSparseAutoencoder):
            _untie(config, weights, read, written)
        _fold(config, weights, read, written)
    folded = kind(**config)
    stored = folded.state_dict()
    folded.load_state_dict({name: t.to(stored[name].dtype) for name, t in weights.items()})
    return folded.train(autoencoder.training)


def _constants(scaling: InputScaling) -> Constants:
    return scaling.mean.double().cpu(), float(scaling.scale)


def _untie(
    config: dict[str, Any], weights: dict[str, Tensor], read: Constants, written: Constants
) -> None:
    """Give a k-sparse autoencoder the parameters that folding needs."""
    config["decoder_bias"] = True
    weights.setdefault("decoder_bias", torch.zeros_like(written[0]))
    if "output_dim" in config:
        config["encoder_bias"] = True
        weights.setdefault(
            "encoder.bias", weights["encoder.weight"].new_zeros(config["latent_dim"])
        )
    if config["tied"] and read[1] != 1.0:
        config["tied"] = False
        weights["decoder_weight"] = weights["encoder.weight"]


def _fold(
    config: dict[str, Any], weights: dict[str, Tensor], read: Constants, written: Constants
) -> None:
    if read[1] != 1.0:
        weights["encoder.weight"] = weights["encoder.weight"] * read[1]
    if written[1] != 1.0:
        weights["decoder_weight"] = weights["decoder_weight"] / written[1]
        config["unit_norm"] = False
    weights["decoder_bias"] = weights["decoder_bias"] / written[1] + written[0]
    # Where the decoder's bias is subtracted before encoding, the mean is subtracted with it.
    if "output_dim" in config or not config.get("subtract_decoder_bias", True):
        _shift_biases(weights, weights["encoder.weight"] @ read[0])


def _shift_biases(weights: dict[str, Tensor], shift: Tensor) -> None:
    if "gate_bias" in weights:
        magnitude = weights["log_magnitude"].exp()
        weights["gate_bias"] = weights["gate_bias"] - shift
        weights["magnitude_bias"] = weights["magnitude_bias"] - magnitude * shift
    else:
        weights["encoder.bias"] = weights["encoder.bias"] - shift


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
    text = escape_control_chars(value)
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return "`{}`".format(text.replace("`", "\\x60").replace("|", "\\x7c"))


# The files by which each library's folders are known.
_FILES: dict[str, tuple[str, ...]] = {
    "palinka": (CONFIG, WEIGHTS),
    "SAELens": saelens.FILES,
    "sparsify": sparsify.FILES,
    "dictionary_learning": dictionary_learning.FILES,
}
_READERS: dict[str, Callable[[Path], tuple[Plain, Origin]]] = {
    "SAELens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
}
FORMATS = ("saelens", "sparsify", "palinka")
_MOST_LISTED = 10


def library_of(files: Iterable[str], where: str) -> tuple[str, list[str]]:
    """Which library saved a folder, by the names of its files.

    Args:
        files: The paths of the files within the folder, with `/` between their parts.
        where: The folder's name for messages.

    Returns:
        The library, and the files that hold the autoencoder.

    Raises:
        InputError: If it is none, or several; says what was found, also in subfolders.
    """
    names = set(files)
    found = {name: list(needed) for name, needed in _FILES.items() if names >= set(needed)}
    lone = [name for name in names if "/" not in name and name.endswith(".pt")]
    if not found and len(lone) == 1 and lone != [dictionary_learning.WEIGHTS]:
        found["OpenAI"] = lone
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise InputError(
            f"{where} holds what {' and '.join(found)} save ({', '.join(sorted(names)[:6])}):"
            " leave the files of one of them in a folder"
        )
    within = sorted({str(PurePosixPath(name).parent) for name in names if "/" in name})
    inside = [folder for folder in within if _is_one(names, folder)]
    if inside:
        more = f" and {len(inside) - _MOST_LISTED} more" if len(inside) > _MOST_LISTED else ""
        raise InputError(
            f"{where} holds autoencoders in {', '.join(inside[:_MOST_LISTED])}{more}:"
            f" give one of them, such as {where}/{inside[0]}"
        )
    raise InputError(_lacking(names, where))


def _lacking(names: set[str], where: str) -> str:
    """What a folder that no library saved lacks to be one."""
    lacking = {
        library: [name for name in needed if name not in names]
        for library, needed in _FILES.items()
        if names & set(needed)
    }
    if lacking:
        missing = ", or ".join(
            f"{where}/{' and '.join(files)} ({library})" for library, files in lacking.items()
        )
        present = sorted(names & {name for needed in _FILES.values() for name in needed})
        return f"no file {missing}, beside {', '.join(present)}: complete the folder"
    shown = ", ".join(sorted(name for name in names if "/" not in name)[:_MOST_LISTED])
    expected = "; ".join(f"{' + '.join(needed)} ({name})" for name, needed in _FILES.items())
    return (
        f"{where} holds {shown or 'no files'}: no autoencoder that can be read, which would be"
        f" {expected}; or a single .pt file (OpenAI)"
    )


def _is_one(names: set[str], folder: str) -> bool:
    return any(all(f"{folder}/{name}" in names for name in needed) for needed in _FILES.values())


def read_foreign(folder: Path, library: str, files: list[str]) -> tuple[Autoencoder, Origin]:
    """Read the folder of another library.

    Args:
        folder: The folder.
        library: As `library_of` found it.
        files: The same.

    Raises:
        InputError: If it cannot be read, or nothing here computes the same.
    """
    if library == "OpenAI":
        weights, origin = openai.read(folder / files[0])
    else:
        weights, origin = _READERS[library](folder)
    try:
        return built(weights), origin
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def files_within(folder: Path) -> list[str]:
    """The names of a folder's files, and of those in folders within it, one level deep.

    Raises:
        InputError: If the folder cannot be listed.
    """
    try:
        first = sorted(folder.iterdir())
        inner = [path for each in first if each.is_dir() for path in sorted(each.iterdir())]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    return [path.relative_to(folder).as_posix() for path in (*first, *inner) if not path.is_dir()]


def write(autoencoder: Autoencoder, origin: Origin, library: str, folder: Path) -> Path:
    """Write an autoencoder of raw activations for a library, with a model card.

    Args:
        autoencoder: What is written.
        origin: What the card says of it.
        library: One of `FORMATS`.
        folder: Where to; made where it is missing.

    Returns:
        The folder that the library loads, which for sparsify is one within.

    Raises:
        InputError: If the library knows no such architecture, or the folder cannot be written.
    """
    inner = folder
    if library == "palinka":
        save_palinka(autoencoder, folder, origin.described())
    elif library == "saelens":
        saelens.write(plain(autoencoder), origin, folder)
    else:
        inner = folder / sparsify.hookpoint(origin)
        sparsify.write(plain(autoencoder), origin, inner)
    card = model_card(autoencoder, origin, library, inner.relative_to(folder).as_posix())
    write_text(folder / CARD, card)
    return inner


# Long enough for a slow connection, and no wait without any.
_SECONDS = 10.0
_NAME = re.compile(r"[\w.\-]{1,96}/[\w.\-]{1,96}(?:/[^/\\\0]{1,200}){0,8}")


def may_be_on_hub(name: str) -> bool:
    """Whether a name could be one of the hub's, with a folder within the repository or without."""
    return _NAME.fullmatch(name) is not None and not set(name.split("/")) & {".", ".."}


def download(name: str, revision: str | None = None) -> Path:
    """Fetch the files of an autoencoder, and nothing else that a repository holds.

    Args:
        name: `owner/repository`, or `owner/repository/folder/within`.
        revision: A branch, tag or commit.

    Returns:
        The folder with the files, in the cache of the hub.

    Raises:
        InputError: If there is no such repository or folder, none that can be read, or no
            connection and nothing in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    owner, repository, *within = name.split("/")
    repo, inner = f"{owner}/{repository}", "/".join(within)
    prefix = f"{inner}/" if inner else ""
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_SECONDS)
    except RevisionNotFoundError as error:
        raise InputError(f"{repo} on the hub has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no folder {name}, and no {repo} on the Hugging Face hub that is open to you:"
            " check the name, or log in for a private one"
        ) from error
    except Exception as error:  # whatever the HTTP client of the day raises without a network
        cached = _cached(repo, revision)
        if cached is None:
            raise InputError(
                f"there is no folder {name}, {repo} is not in the Hugging Face cache, and the hub"
                f" was not reached ({_reason(error)}): give a folder, or go online"
            ) from error
        return cached / inner
    paths = [sibling.rfilename for sibling in info.siblings or []]
    files = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    _, needed = library_of(files, name)
    try:
        folder = snapshot_download(
            repo,
            revision=revision,  # by its name, which the cache then knows without a network
            allow_patterns=[_literal(prefix + file) for file in (*needed, CARD)],
        )
    except Exception as error:  # as above
        raise InputError(f"{name} cannot be fetched from the hub: {_reason(error)}") from error
    return Path(folder) / inner


def upload(
    autoencoder: "Autoencoder", repo_id: str, private: bool | None, token: str | None
) -> str:
    """Put an autoencoder on the hub, with a model card.

    Returns:
        The address of the commit.

    Raises:
        InputError: If it cannot be put there.
    """
    from huggingface_hub import HfApi

    if not may_be_on_hub(repo_id) or repo_id.count("/") != 1:
        raise InputError(f"{repo_id!r} is no name on the hub: give owner/repository")
    with tempfile.TemporaryDirectory() as folder:
        write(autoencoder, Origin(), "palinka", Path(folder))
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder)
        except Exception as error:  # whatever the HTTP client of the day raises
            raise InputError(
                f"{repo_id} cannot be put on the hub: {_reason(error)}; log in with a token that"
                " may write there"
            ) from error
    return str(commit.commit_url)


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except Exception:  # nothing is there, or nothing that it can use
        return None


def _literal(path: str) -> str:
    """A file's name as a pattern that only it matches."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def load(
    where: str | PathLike[str],
    revision: str | None = None,
    base: type[Autoencoder] = Autoencoder,
) -> tuple[Autoencoder, Origin]:
    """Read an autoencoder and what its files say of where it comes from.

    Args:
        where: A folder, or a name on the hub, which may go on with a folder in the repository.
        revision: A branch, tag or commit on the hub.
        base: The class that it must be, or be a subclass of.

    Raises:
        InputError: If there is none, it cannot be read, or it is of another class.
    """
    folder = _folder(where, revision)
    library, files = library_of(files_within(folder), str(where))
    if library == "palinka":
        described = object_of(read_config(folder / pretrained.CONFIG), pretrained.SOURCE)
        return pretrained.load(folder, base).eval(), origin_of(described)
    autoencoder, origin = read_foreign(folder, library, files)
    if not isinstance(autoencoder, base):
        raise InputError(
            f"{where} holds a {type(autoencoder).__name__}, and a {base.__name__} is asked for:"
            " use Autoencoder.from_pretrained"
        )
    return autoencoder.eval(), origin


def _folder(where: str | PathLike[str], revision: str | None) -> Path:
    folder = Path(where)
    try:
        if folder.is_dir():
            if revision is not None:
                raise InputError(f"{where} is a folder, and only the hub has revisions")
            return folder
        known_otherwise = folder.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{where} is no folder that can be read: {error}") from error
    if known_otherwise or not may_be_on_hub(str(where)):
        raise InputError(f"no folder {where}: give a folder that an autoencoder was saved in")
    return download(str(where), revision)
