"""`palinka export` and `palinka import`."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning

from palinka.atlas import exports
from palinka.atlas.analyses import read_explanations
from palinka.atlas.facts import gather
from palinka.autoencoders import Autoencoder
from palinka.autoencoders.formats import Provenance, fold, load, write
from palinka.autoencoders.formats.common import hook_of, within_base_model
from palinka.cli.atlas import checked_module, harvested
from palinka.cli.atlas import overrides as data_of_fit
from palinka.cli.options import WITH_TEXTS
from palinka.cli.resume import checkpoint_named, load_module
from palinka.data import ActivationDataModule
from palinka.errors import InputError, escape_control_chars, expanded
from palinka.language_models import LanguageModelSpec
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.checkpoint import DurableCheckpointIO


def overrides(settings: Any) -> dict[str, Any]:
    """Data settings of the checkpoint, for the formats with texts."""
    return data_of_fit(settings) if settings.get("format") in WITH_TEXTS else {}


def export(
    ckpt_path: str,
    format: Literal["saelens", "sparsify", "palinka", "saedashboard", "neuronpedia", "delphi"],  # noqa: A002
    output: str,
    data: ActivationDataModule,
    license: str = "unknown",  # noqa: A002
    explanations: str | None = None,
    model_id: str | None = None,
    suffix: str | None = None,
) -> int:
    """Write the autoencoder of a checkpoint, or its latents with texts, in a library's format.

    Centering and scaling are folded into the weights, so that it takes raw activations.

    Args:
        ckpt_path: A checkpoint of `palinka fit` or `import`; `last` is that of the last run.
        format: Weights for SAELens (v6), sparsify (top-k only) or palinka, with a model card; or
            latents with texts, as SAEDashboard, Neuronpedia and delphi read them.
        output: A new or empty folder, which appears whole or not at all.
        data: Source of the texts; defaults to that of the fit.
        license: License of weights for the card, as the hub has it, e.g. mit or apache-2.0.
        explanations: An `explanations.json`, for Neuronpedia and delphi.
        model_id: Neuronpedia's name of the language model, such as gpt2-small.
        suffix: End of the name on Neuronpedia, where a second export needs another.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]{0,40}", license):
        hint = "e.g. mit, apache-2.0, cc-by-4.0 or unknown"
        raise InputError(f"--license {license!r} is not an identifier of the hub, {hint}")
    path, folder = checkpoint_named(ckpt_path), expanded(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already exists; choose another --output, or an empty folder")
    notes: list[str] = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        whole = inner = Path(beside) / "whole"
        if format in WITH_TEXTS:
            module = checked_module(str(path), data)
            explained: dict[int, str] = {}
            if explanations:
                site, file = data.validation_spec.resolved_sites[0], expanded(explanations)
                of = (module.autoencoder.latent_dim, site, checkpoint.sha256(path))
                found = read_explanations(file, *of).explanations
                explained = {latent: str(one["text"]) for latent, one in found.items()}
            naming = (explained, model_id, suffix)
            notes = _write_latents(whole, format, module, data, naming)
        else:
            module = load_module(path)
            autoencoder = fold(module.autoencoder, module.scaling, module.target_scaling)
            provenance = replace(_provenance(checkpoint.read(path), format), license=license)
            inner = write(autoencoder, provenance, format, whole)
        inner = inner.relative_to(whole)
        whole.replace(folder)
    for note in notes:
        print(escape_control_chars(f"note: {note}"))
    print(escape_control_chars(f"exported to   {folder / inner}"))
    return 0


def _write_latents(
    folder: Path, kind: str, module: SparseAutoencoderModule, data: ActivationDataModule,
    naming: tuple[dict[int, str], str | None, str | None],
) -> list[str]:  # fmt: skip
    """Write latents with texts; return notes."""
    explanations, model_id, suffix = naming
    module = module.to(harvested(data).device)
    site, latents = data.validation_spec.resolved_sites[-1], module.autoencoder.latent_dim
    known = {"datamodule_hyper_parameters": dict(data.hparams), "source": {"site": site}}
    source = exports.describe_source(data, latents, _provenance(known, "saelens"), model_id, suffix)
    if kind == "delphi":
        name = _provenance(known, kind).module or site
        return exports.write_delphi(folder, data, module, source, name, explanations)
    facts = gather(data, module, exports.OPTIONS)
    scaled = module.autoencoder.dictionary / module.output_scaling.scale
    directions = scaled.detach().float().cpu().numpy()
    if kind == "saedashboard":
        exports.write_saedashboard(folder, facts, directions, source)
    else:
        exports.write_neuronpedia(folder, facts, directions, source, explanations)
    notes = [*facts.report.notes]
    if source.hook is None:
        notes.append(f"export {kind}: the site {site} has no hook name there; written without one")
    if silent := latents - len(exports.active(facts)):
        counts = f"{silent:,} of {latents:,} latents are never active on this text"
        notes.append(f"export {kind}: {counts}; left out")
    return notes


def import_(where: str, /, output: str | None = None, revision: str | None = None) -> int:
    """Make a checkpoint of an autoencoder of another library.

    It may be of palinka, SAELens, sparsify, dictionary_learning or OpenAI's sparse_autoencoder.

    Args:
        where: A folder, or `owner/repository[/folder]` on the hub.
        output: The checkpoint; default the folder's name with `.ckpt`.
        revision: A branch, tag or commit on the hub.
    """
    local = expanded(where)
    where = str(local) if local.exists() else where
    path = expanded(output) if output else Path(f"{Path(where).resolve().name}.ckpt")
    if path.exists():
        raise InputError(f"{path} already exists; choose another --output")
    autoencoder, provenance = load(where, revision)
    write_checkpoint(autoencoder, provenance, path)
    for name, value in (
        ("class", type(autoencoder).__name__),
        ("width", autoencoder.input_dim),
        ("latents", autoencoder.latent_dim),
        ("model", provenance.language_model or "unknown"),
        ("site", provenance.site or provenance.hook or "unknown"),
    ):
        print(escape_control_chars(f"  {name:<10}{value}"))
    print(escape_control_chars(f"imported to   {path}"))
    return 0


def _provenance(stored: Mapping[str, Any], library: str) -> Provenance:
    """Provenance of a checkpoint's autoencoder; one from Python may have any data module."""
    data = stored.get("datamodule_hyper_parameters", {})
    source = stored.get("source", {})
    described, site = data.get("language_model"), source.get("site")
    spec = LanguageModelSpec(**described) if isinstance(described, dict) else None
    module, layers = _module(spec, site) if spec and site else (None, None)
    hook = source.get("hook")
    if library == "saelens":
        hook = hook_of(site, layers) if site else hook
        if spec and module and site and site.endswith(("attn.out", "mlp.out")):
            written = spec.sites.tap(f"{site.removesuffix('out')}write").module
            hook = hook if written == module else None  # TransformerLens' is after the norm
    elif module:
        hook = within_base_model(module)
    known = {
        **source,
        "language_model_name": spec.portable_name if spec else source.get("language_model_name"),
        "module": module or source.get("module"),
        "hook": hook,
        "corpus": _corpus(data.get("corpus")) or source.get("corpus"),
        "context_length": data.get("context_length", source.get("context_length")),
    }
    metrics = stored.get("run", {}).get("metrics", {})
    final = {n: float(v) for n, v in metrics.items() if n.startswith(("val/", "val_interval/"))}
    return replace(Provenance.from_dict(known), tokens=_tokens(stored, data), metrics=final)


def _module(spec: LanguageModelSpec, site: str) -> tuple[str | None, int | None]:
    """Module whose output a site is, and number of blocks, if the model is at hand."""
    try:
        tap, layers = spec.sites.tap(site), spec.sites.layers
    except InputError:
        return None, None
    if tap.span is not None:
        return None, layers
    if tap.side == "output":
        return tap.module, layers
    block = tap.module.rpartition(".")[0]
    # The activation function's output is what the second projection reads, unless it is gated.
    plain_mlp = tap.module.endswith(("mlp.c_proj", "mlp.dense_4h_to_h"))
    return (f"{block}.act" if plain_mlp else None), layers


def _corpus(described: Any) -> str | None:
    """Name of the corpus, without the path of its folder."""
    if not isinstance(described, dict):
        return None
    kind = described["class_path"].rpartition(".")[2]
    named = [described.get("init_args", {}).get(key) for key in ("path", "name", "split")]
    hub = kind == "HuggingFaceDataset"
    return " ".join([kind, *(str(v) if hub else Path(str(v)).name for v in named if v is not None)])


def _tokens(stored: Mapping[str, Any], data: Mapping[str, Any]) -> int | None:
    """Number of rows of the fit, over all epochs and devices."""
    try:
        loader = stored["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        rows, epoch, served = (int(loader[key]) for key in ("rows", "epoch", "samples_seen"))
    except (KeyError, IndexError, TypeError):  # imported, or of another data module
        return None
    batch = data.get("batch_size") or rows
    return epoch * (rows // batch * batch) + served


def write_checkpoint(autoencoder: Autoencoder, provenance: Provenance, path: Path) -> None:
    """Write a checkpoint that `validate`, `test`, `predict` and `analyze` take."""
    module = SparseAutoencoderModule(autoencoder)
    content: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "callbacks": {},
        "source": provenance.to_dict(),
    }
    DurableCheckpointIO().save_checkpoint(content, path)
