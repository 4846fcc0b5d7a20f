"""Load and save dictionaries of other libraries."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders import base, files
from palinka.autoencoders.base import Autoencoder, InputScaling
from palinka.autoencoders.batch_topk import BatchTopKAutoencoder
from palinka.autoencoders.files import Provenance
from palinka.autoencoders.formats import dictionary_learning, openai, saelens, sparsify
from palinka.autoencoders.formats.common import Kind, StateTable, mapping_in, shift_biases
from palinka.autoencoders.gated import GatedAutoencoder
from palinka.autoencoders.jumprelu import JumpReLUAutoencoder
from palinka.autoencoders.ksparse import KSparseAutoencoder, LayerNormalizedAutoencoder
from palinka.autoencoders.matryoshka import MatryoshkaAutoencoder
from palinka.autoencoders.relu import ReLUAutoencoder
from palinka.autoencoders.topk import TopKAutoencoder
from palinka.errors import InputError

FORMATS = ("saelens", "sparsify", "palinka")
"""Formats that can be written."""

READERS = {
    "SAELens": saelens, "sparsify": sparsify,
    "dictionary_learning": dictionary_learning, "OpenAI": openai,
}  # fmt: skip
LIBRARIES = {"palinka": base.OWN_FILES, **{name: r.FILES for name, r in READERS.items()}}
# Activation function of exactly these classes; a subclass may compute something else.
KINDS: dict[type[Autoencoder], Kind] = {
    ReLUAutoencoder: "relu",
    TopKAutoencoder: "topk",
    BatchTopKAutoencoder: "batch_topk",
    JumpReLUAutoencoder: "jumprelu",
    GatedAutoencoder: "gated",
    MatryoshkaAutoencoder: "batch_topk",
    KSparseAutoencoder: "topk",
    LayerNormalizedAutoencoder: "topk",
}
_TIES = """
Its top-k keeps exactly k latents of a token; palinka's keeps all that tie with the k-th largest.
They differ only where two values are equal to the last bit.
"""


@torch.no_grad()
def to_table(autoencoder: Autoencoder) -> StateTable:
    """Weights and settings of an autoencoder, if other libraries have its class."""
    kind = KINDS.get(type(autoencoder))
    if autoencoder.is_transcoder or kind is None:
        name = "transcoder" if autoencoder.is_transcoder else type(autoencoder).__name__
        raise InputError(f"a {name} can be saved in palinka's own format only: choose that")
    tensors = dict(autoencoder.state_dict())
    tensors["decoder_weight"] = autoencoder.dictionary.detach()
    zeros = autoencoder.dictionary.new_zeros
    tensors.setdefault("decoder_bias", zeros(autoencoder.input_dim))
    if kind == "jumprelu":
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    elif kind == "batch_topk":
        tensors["batch_threshold"] = tensors.pop("threshold")
    if kind != "gated":
        tensors.setdefault("encoder.bias", zeros(autoencoder.latent_dim))
    return StateTable(
        kind,
        tensors,
        k=getattr(autoencoder, "k", 0),
        subtracts_bias=getattr(autoencoder, "subtract_decoder_bias", True),
        layer_norm=isinstance(autoencoder, LayerNormalizedAutoencoder),
    )


@torch.no_grad()
def from_table(table: StateTable) -> Autoencoder:
    """Autoencoder that computes the same as a table, on the CPU and in `eval()` mode."""
    settings: dict[str, Any] = {"k": table.k} if table.k else {}
    kind = next(kind for kind, known in KINDS.items() if known == table.kind)
    if table.layer_norm:
        if table.kind != "topk":
            raise InputError(f"layer-normed activations can be encoded by top-k, not {table.kind}")
        kind, table = LayerNormalizedAutoencoder, table.with_subtracted_bias()
        settings |= {"tied": False, "encoder_bias": True, "decoder_bias": True}
    else:
        settings |= {"subtract_decoder_bias": table.subtracts_bias, "unit_norm": False}
    tensors = dict(table.tensors)
    # A threshold below zero does what zero does, since a ReLU comes first.
    if table.kind == "jumprelu":
        tensors["log_threshold"] = tensors.pop("threshold").clamp(min=0).log()
    elif table.kind == "batch_topk":
        tensors["threshold"] = tensors.pop("batch_threshold").clamp(min=0)
    autoencoder = kind(*table.shape[::-1], **settings)
    autoencoder.load_state_dict(tensors)
    return autoencoder.eval()


@torch.no_grad()
def fold(
    autoencoder: Autoencoder, scaling: InputScaling, target_scaling: InputScaling | None = None
) -> Autoencoder:
    """Fold centering and scaling into the weights of a copy that takes raw activations.

    The latents are the same, and the reconstruction is the original's after `inverse` of the
    scaling, or of that of a transcoder's target. Where there is a scale, directions of norm 1 get
    norm `1 / scale`, and a tied decoder becomes untied. A class that may do more with activations
    than those of palinka is an `InputError`.
    """
    target = target_scaling or scaling
    mean, target_mean = scaling.mean.double().cpu(), target.mean.double().cpu()
    scale, target_scale = float(scaling.scale), float(target.scale)
    kind, config = type(autoencoder), autoencoder.config()
    weights = {name: tensor.detach().cpu() for name, tensor in autoencoder.state_dict().items()}
    if (scale, target_scale) != (1.0, 1.0) or bool(mean.any()) or bool(target_mean.any()):
        if kind not in KINDS or kind is LayerNormalizedAutoencoder:
            fault = f"centering and scaling cannot be folded into the weights of a {kind.__name__}"
            raise InputError(f"{fault}: keep the checkpoint, or train without center and unit_norm")
        weights = {name: tensor.double() for name, tensor in weights.items()}
        if isinstance(autoencoder, KSparseAutoencoder):
            _add_parameters(config, weights, untie=scale != 1.0)
        weights["encoder.weight"] = weights["encoder.weight"] * scale
        if "decoder_weight" in weights:
            weights["decoder_weight"] = weights["decoder_weight"] / target_scale
        config["unit_norm"] = config["unit_norm"] and target_scale == 1.0
        weights["decoder_bias"] = weights["decoder_bias"] / target_scale + target_mean
        # A decoder's bias that is subtracted before encoding takes the mean with it.
        if autoencoder.is_transcoder or not config.get("subtract_decoder_bias", True):
            weights = shift_biases(weights, -(weights["encoder.weight"] @ mean))
    folded = kind(**config)
    stored = folded.state_dict()
    folded.load_state_dict({name: t.to(stored[name].dtype) for name, t in weights.items()})
    return folded.train(autoencoder.training)


def _add_parameters(config: dict[str, Any], weights: dict[str, Tensor], *, untie: bool) -> None:
    """Give a k-sparse autoencoder the parameters that folding needs."""
    zeros = weights["encoder.weight"].new_zeros
    config["decoder_bias"] = True
    weights.setdefault("decoder_bias", zeros(config.get("output_dim", config["input_dim"])))
    if "output_dim" in config:
        config["encoder_bias"] = True
        weights.setdefault("encoder.bias", zeros(config["latent_dim"]))
    if config["tied"] and untie:
        config["tied"] = False
        weights["decoder_weight"] = weights["encoder.weight"]


def load(where: str | PathLike[str], revision: str | None = None) -> tuple[Autoencoder, Provenance]:
    """Load an autoencoder that palinka or another library saved, in `eval()` mode.

    An `InputError` if it cannot be read, or no class computes the same.

    Args:
        where: A folder, or `owner/repository[/folder]` on the Hugging Face hub.
        revision: A branch, tag or commit on the hub.
    """
    folder, library, names = files.find_folder(where, revision, LIBRARIES)
    if library == "palinka":
        source = mapping_in(files.read_json(folder / base.CONFIG), "source")
        return base.load(folder, Autoencoder), Provenance.from_dict(source)  # type: ignore[type-abstract]
    table, provenance = READERS[library].read(*(folder / name for name in names))
    try:
        return from_table(table), provenance
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def write(autoencoder: Autoencoder, provenance: Provenance, library: str, folder: Path) -> Path:
    """Write an autoencoder of raw activations in one of `FORMATS`, with a model card.

    Returns the folder that the library loads, for sparsify one within; an `InputError` if the
    library has no such architecture.
    """
    inner, name, note = folder, library, ""
    if library == "palinka":
        base.save(autoencoder, folder, provenance.to_dict())
    else:
        table = to_table(autoencoder)
        note = _TIES if table.kind == "topk" else ""
        if library == "sparsify":
            inner = folder / sparsify.hookpoint(provenance)
            sparsify.write(table, provenance, inner)
        else:
            name = "SAELens"
            saelens.write(table, provenance, folder)
    place = inner.relative_to(folder).as_posix()
    card = files.model_card(autoencoder, provenance, name, place, note)
    files.write_files(folder, {files.CARD: card})
    return inner
