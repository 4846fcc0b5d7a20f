"""`palinka atlas` and `palinka atlas serve`: write or serve an atlas."""

import sys
from typing import Any

import lightning.pytorch as pl

import palinka.data  # noqa: F401  (so that --data.corpus may name its classes)
from palinka.atlas import AtlasServer, Options, WriteAtlas
from palinka.atlas.server import LiveLatents, check_atlas
from palinka.cli.resume import checkpoint_named, findings_folder, load_module
from palinka.cli.trainer import ignore_warnings
from palinka.data import ActivationDataModule
from palinka.errors import InputError, expanded, shell_path
from palinka.language_models import LanguageModel
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks import LanguageModelMetrics


def overrides(settings: Any) -> dict[str, Any]:
    """Data settings of a checkpoint's fit, which override configuration files."""
    stored = checkpoint.read(checkpoint_named(settings.ckpt_path), allow_sweep=True)
    data = stored.get("datamodule_hyper_parameters", {})  # an imported one has none
    return {"data": {name: value for name, value in data.items() if name[0] != "_"}} if data else {}


def atlas(
    ckpt_path: str,
    output: str,
    options: Options,
    data: ActivationDataModule,
    analyses: str | None = None,
    against: str | None = None,
    explanations: str | None = None,
) -> int:
    """Write a site about every latent of a checkpoint, which a browser opens from the disk.

    `palinka atlas serve --help` is about typing text of your own.

    Args:
        ckpt_path: `last` for that of the last run, or a file of `palinka fit` or `import`.
        output: The folder; an atlas there is replaced.
        options: How much to show of each latent.
        data: Source of rows and texts; defaults to that of the fit.
        analyses: A folder with findings; default that of the run.
        against: Another dictionary of the same site, matched latent by latent: a checkpoint, the
            log folder of a run, or an exported dictionary.
        explanations: `explanations.json` of `palinka explain`, which label latents.
    """
    other = str(checkpoint_named(against)) if against else None
    module = checked_module(ckpt_path, data)
    found = expanded(analyses) if analyses else findings_folder(checkpoint_named(ckpt_path))
    writer = WriteAtlas(output, str(found), options, other, explanations)
    writer.checksum = checkpoint.sha256(checkpoint_named(ckpt_path))
    trainer = pl.Trainer(
        logger=False, callbacks=[LanguageModelMetrics(), writer], enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, devices=1,
    )  # fmt: skip
    trainer.validate(module, data, verbose=False)
    if writer.page is None:
        raise InputError("no atlas: the latents are divided over devices; give a checkpoint of one")
    size = sum(file.stat().st_size for file in writer.page.parent.rglob("*") if file.is_file())
    print(f"atlas of {module.autoencoder.latent_dim:,} latents, {size / 1e6:.1f} MB")
    print(f"open it in a browser   {shell_path(writer.page)}")
    return 0


def serve(ckpt_path: str, atlas: str, data: ActivationDataModule, port: int = 0) -> int:
    """Open an atlas on 127.0.0.1, with a box for text of your own, until Ctrl-C.

    Args:
        ckpt_path: `last` for that of the last run, or a file of `palinka fit` or `import`.
        atlas: Output of `palinka atlas`.
        data: Source of rows and texts; defaults to that of the fit.
        port: Port; 0 for any free one.
    """
    module = checked_module(ckpt_path, data)
    check_atlas(expanded(atlas))  # before the model is loaded
    spec = data.validation_spec
    model = LanguageModel.load(spec.language_model)
    module = module.to(model.device)
    live = LiveLatents(model, spec.resolved_sites[0], module, spec.bos, spec.layout.skip)
    with AtlasServer(expanded(atlas), live, port) as server:
        print(f"the atlas is at   {server.url}   (stop with Ctrl-C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    return 0


def checked_module(ckpt_path: str, data: ActivationDataModule) -> SparseAutoencoderModule:
    """Load the module of a checkpoint, and check that it fits the data."""
    ignore_warnings(tips=True)
    path = checkpoint_named(ckpt_path)
    module = load_module(path)
    checkpoint.check_matches(checkpoint.read(path), module.autoencoder, data, resume=False)
    return module
