"""`palinka export` and `palinka import`."""

import re
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning

from palinka.autoencoders import Autoencoder
from palinka.autoencoders.formats import FORMATS, Provenance, fold, load, write
from palinka.autoencoders.formats.common import hook_of, within_base_model
from palinka.cli.commands import ArgumentParser
from palinka.cli.resume import checkpoint_named
from palinka.errors import InputError, escape_control_chars, expanded
from palinka.language_models import LanguageModelSpec
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.checkpoint import DurableCheckpointIO

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,40}")
_SPLITS = ("val/", "val_interval/")


def run(arguments: Sequence[str]) -> int:
    """Run `palinka export` or `palinka import`, the first argument; return the exit status."""
    command, *rest = arguments
    given = parsers()[command].parse_args(rest)
    return _run_export(given) if command == "export" else _run_import(given)


def _run_export(given: Namespace) -> int:
    if not _LICENSE.fullmatch(given.license):
        raise InputError(
            f"--license {given.license!r} is not an identifier of the Hugging Face hub, e.g. mit,"
            " apache-2.0, cc-by-4.0 or unknown"
        )
    path = checkpoint_named(given.ckpt_path)
    folder = export(path, given.format, expanded(given.output), given.license)
    print(f"exported to   {escape_control_chars(str(folder))}")
    return 0


def _run_import(given: Namespace) -> int:
    local = expanded(given.where)
    where = str(local) if local.exists() else given.where
    output = expanded(given.output) if given.output else Path(f"{Path(where).resolve().name}.ckpt")
    if output.exists():
        raise InputError(f"{output} already exists; choose another --output")
    autoencoder, provenance = load(where, given.revision)
    write_checkpoint(autoencoder, provenance, output)
    facts = {
        "class": type(autoencoder).__name__,
        "width": str(autoencoder.input_dim),
        "latents": str(autoencoder.latent_dim),
        "model": provenance.language_model or "unknown",
        "site": provenance.site or provenance.hook or "unknown",
    }
    for name, value in facts.items():
        print(f"  {name:<10}{escape_control_chars(value)}")
    print(f"\nimported to   {escape_control_chars(str(output))}")
    return 0


def export(ckpt_path: Path, library: str, output: Path, license_: str = "unknown") -> Path:
    """Write a checkpoint's autoencoder in a library's format, with a model card.

    Centering and scaling are taken into the weights: what is written takes raw activations.

    Args:
        ckpt_path: A checkpoint of `palinka fit` or `palinka import`.
        library: `saelens`, `sparsify` or `palinka`.
        output: A new or empty folder, which appears whole or not at all.
        license_: License for the card.

    Returns:
        The folder that the library loads, which for sparsify is one within, named by the site.
    """
    stored = checkpoint.read(ckpt_path)
    module = SparseAutoencoderModule.load_from_checkpoint(ckpt_path, map_location="cpu").eval()
    autoencoder = fold(module.autoencoder, module.scaling, module.target_scaling)
    provenance = _provenance(stored, library, license_)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} already exists; choose another --output, or an empty folder")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}; choose another") from error
    try:
        written = write(autoencoder, provenance, library, beside).relative_to(beside)
        beside.chmod(0o755)  # temporary folders are their owner's alone
        beside.replace(output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}; choose another") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return output / written


def _provenance(stored: Mapping[str, Any], library: str, license_: str) -> Provenance:
    """Provenance of a checkpoint's autoencoder."""
    data = _mapping(stored, "datamodule_hyper_parameters")
    source = checkpoint.source_of(stored)
    spec = _spec(data)
    site = _text(source, "site")
    module, layers = _module(spec, site) if spec and site else (None, None)
    hook = _text(source, "hook")
    if library == "saelens":
        hook = hook_of(site, layers) if site else hook
    elif module:
        hook = within_base_model(module)
    known = {
        **source,
        "language_model_name": spec.portable_name if spec else source.get("language_model_name"),
        "module": module or source.get("module"),
        "hook": hook,
        "corpus": _corpus(data) or source.get("corpus"),
        "context_length": data.get("context_length", source.get("context_length")),
    }
    return replace(
        Provenance.from_dict(known),
        tokens=_tokens(stored, data),
        metrics=_metrics(stored),
        license=license_,
    )


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) and value else None


def _spec(data: Mapping[str, Any]) -> LanguageModelSpec | None:
    described = _mapping(data, "language_model")
    try:
        return LanguageModelSpec(**described) if described else None
    except (TypeError, InputError):  # as another version wrote it
        return None


def _module(spec: LanguageModelSpec, site: str) -> tuple[str | None, int | None]:
    """Module whose output a site is, and number of blocks, if the model is at hand."""
    try:
        tap, layers = spec.sites.tap(site), spec.sites.layers
    except InputError:
        return None, None
    if tap.part is not None:
        return None, layers
    if tap.side == "output":
        return tap.module, layers
    block, _, projection = tap.module.rpartition(".")
    # The activation function's output is what the second projection reads, unless it is gated.
    plain_mlp = projection in ("c_proj", "dense_4h_to_h")
    return (f"{block}.act" if plain_mlp else None), layers


def _corpus(data: Mapping[str, Any]) -> str | None:
    """Name of the corpus, without the path of its folder."""
    described = _mapping(data, "corpus")
    kind = str(described.get("class_path", "")).rpartition(".")[2]
    if not kind:
        return None
    arguments = _mapping(described, "init_args")
    named = (arguments.get(key) for key in ("path", "name", "split"))
    hub = kind == "HuggingFaceDataset"
    words = [str(v) if hub else Path(str(v)).name for v in named if v is not None]
    return " ".join([kind, *words])


def _tokens(stored: Mapping[str, Any], data: Mapping[str, Any]) -> int | None:
    """Number of rows of the fit, over all epochs and devices."""
    state = _mapping(_mapping(_mapping(stored, "loops"), "fit_loop"), "state_dict")
    loaders = state.get("combined_loader")
    loader = loaders[0] if isinstance(loaders, list) and loaders else {}
    try:
        rows, epoch, served = (int(loader[key]) for key in ("rows", "epoch", "samples_seen"))
        batch = int(data.get("batch_size") or rows)
    except (KeyError, TypeError, ValueError):
        return None
    return epoch * (rows // batch * batch) + served


def _metrics(stored: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of the validation split, by name."""
    found = {}
    for name, value in _mapping(_mapping(stored, "run"), "metrics").items():
        if str(name).startswith(_SPLITS):
            try:
                found[str(name)] = float(value)
            except (TypeError, ValueError, RuntimeError):  # not a scalar
                continue
    return found


def write_checkpoint(autoencoder: Autoencoder, provenance: Provenance, path: Path) -> None:
    """Write a checkpoint that `validate`, `test`, `predict` and `analyze` take.

    It says of the language model only what names the same weights everywhere, so that a model may
    have another name here; it has no data to go on training with.

    Args:
        autoencoder: Of raw activations.
        provenance: Its provenance.
        path: The file, which appears whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
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
    try:
        DurableCheckpointIO().save_checkpoint(content, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; choose another --output"
        ) from error


def parsers() -> dict[str, ArgumentParser]:
    """Parsers of both commands."""
    exported = ArgumentParser(
        "palinka export",
        description="Write the autoencoder of a checkpoint in the format of another library.",
    )
    exported.add_argument(
        "--ckpt_path", required=True, metavar="FILE", help="a fit's checkpoint, or last"
    )
    exported.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="saelens (v6), sparsify (top-k only), or palinka's own",
    )
    exported.add_argument("--output", required=True, metavar="DIR", help="a new or empty folder")
    exported.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="for the model card, as the Hugging Face hub has it: mit, apache-2.0, … (unknown)",
    )
    imported = ArgumentParser(
        "palinka import",
        description="Make a checkpoint of an autoencoder that palinka, SAELens, sparsify,"
        " dictionary_learning or OpenAI's sparse_autoencoder saved.",
    )
    imported.add_argument(
        "where",
        metavar="DIR",
        help="a folder, or owner/repository[/folder] on the Hugging Face hub",
    )
    imported.add_argument("--output", metavar="FILE", help="the checkpoint; DIR's name with .ckpt")
    imported.add_argument("--revision", help="a branch, tag or commit on the hub")
    return {"export": exported, "import": imported}
