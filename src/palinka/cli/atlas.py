"""`palinka atlas` and `palinka atlas serve`: write or serve an atlas."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

import palinka.data  # noqa: F401  (so that --data.corpus may name its classes)
from palinka.atlas import AtlasServer, Options, WriteAtlas
from palinka.atlas.server import LiveLatents, check_atlas
from palinka.cli.parser import ArgumentParser, move_configs_first, with_overrides
from palinka.cli.resume import checkpoint_named, findings_folder
from palinka.data import ActivationDataModule
from palinka.errors import InputError, expanded
from palinka.language_models import LanguageModel
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks import LanguageModelMetrics, shell_path

_DESCRIPTIONS = {
    "atlas": "Write a site about every latent of a checkpoint, which a browser opens from the disk."
    " `palinka atlas serve --help` is about typing text of your own.",
    "atlas serve": "Open an atlas on 127.0.0.1, with a box for text of your own.",
}


def run(words: str, arguments: Sequence[str]) -> int:
    """Run `atlas` or `atlas serve` with the arguments that follow."""
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and a newer torch
    # The loader reads ahead in a thread.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Lightning's tips and list of devices.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    parser = parsers()[words]
    settings = parser.parse_args(move_configs_first(arguments))
    path = checkpoint_named(settings.ckpt_path)
    stored = checkpoint.read(path)
    # An imported checkpoint has no data.
    data = stored.get("datamodule_hyper_parameters", {})
    if kept := {name: value for name, value in data.items() if not name.startswith("_")}:
        settings = parser.parse_args(with_overrides(arguments, {"data": kept}))
    made = parser.instantiate(settings)
    module = SparseAutoencoderModule.load_from_checkpoint(path, map_location="cpu").eval()
    checkpoint.check_matches(stored, module.autoencoder, made.data, resume=False)
    if words == "atlas serve":
        return _serve(made.data, module, expanded(made.atlas), made.port)
    analyses = expanded(made.analyses) if made.analyses else findings_folder(path)
    return _write(made.data, module, WriteAtlas(made.output, str(analyses), made.options))


def parsers() -> dict[str, ArgumentParser]:
    """Parsers of `palinka atlas` and `palinka atlas serve`."""
    found = {}
    for words, description in _DESCRIPTIONS.items():
        parser = found[words] = ArgumentParser(prog=f"palinka {words}", description=description)
        option = parser.add_argument
        option("-c", "--config", action=ActionConfigFile, help="A YAML configuration.")
        path = "A checkpoint of `palinka fit` or `import`; `last` is that of the last run."
        option("--ckpt_path", type=str, required=True, help=path)
        if words == "atlas serve":
            option("--atlas", type=str, required=True, help="Output of `palinka atlas`.")
            option("--port", type=int, default=0, help="Port; 0 for any free one.")
        else:
            output = "The folder; an atlas there is replaced."
            option("--output", type=str, required=True, help=output)
            folder = "A folder with findings; by default where `analyze` keeps the checkpoint's."
            option("--analyses", type=str | None, default=None, help=folder)
            parser.add_class_arguments(Options, "options", help="How much to show of each latent.")
        rows = "Source of rows and texts; defaults to that of the fit."
        parser.add_class_arguments(ActivationDataModule, "data", help=rows)
    return found


def _write(data: ActivationDataModule, module: SparseAutoencoderModule, writer: WriteAtlas) -> int:
    """Measure the checkpoint as `palinka validate` does, and write the atlas."""
    trainer = pl.Trainer(
        logger=False,
        callbacks=[LanguageModelMetrics(), writer],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        devices=1,
    )
    trainer.validate(module, data, verbose=False)
    if writer.page is None:
        raise InputError("no atlas: the latents are divided over devices; give a checkpoint of one")
    size = sum(file.stat().st_size for file in writer.page.parent.rglob("*") if file.is_file())
    print(f"atlas of {module.autoencoder.latent_dim:,} latents, {size / 1e6:.1f} MB")
    print(f"open it in a browser   {shell_path(writer.page)}")
    return 0


def _serve(
    data: ActivationDataModule, module: SparseAutoencoderModule, folder: Path, port: int
) -> int:
    """Serve until Ctrl-C."""
    check_atlas(folder)  # before the model is loaded
    spec = data.validation_spec
    model = LanguageModel.load(spec.language_model)
    module = module.to(model.device)
    live = LiveLatents(model, spec.resolved_sites[0], module, spec.bos, spec.layout.skip)
    with AtlasServer(folder, live, port) as server:
        print(f"the atlas is at   {server.url}   (stop with Ctrl-C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    return 0
