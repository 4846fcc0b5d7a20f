"""`palinka atlas`: write or serve an atlas."""

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

import palinka.data  # noqa: F401  (so that --data.corpus may name its classes)
from palinka.atlas import AtlasServer, Options, WriteAtlas
from palinka.atlas.server import LiveLatents, check_atlas
from palinka.cli import resume as runs
from palinka.cli.parser import ConfigArgumentParser, move_configs_first, with_overrides
from palinka.data import ActivationDataModule
from palinka.errors import InputError, did_you_mean, expanded
from palinka.language_models import LanguageModel
from palinka.training import SparseAutoencoderModule, checkpoint
from palinka.training.callbacks import LanguageModelMetrics, shell_path


def run(arguments: Sequence[str]) -> int:
    """Run `palinka atlas` or `palinka atlas serve` with the arguments that follow `atlas`."""
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and a newer torch
    # The loader reads ahead in a thread.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Lightning's tips and list of devices.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    serving = list(arguments[:1]) == ["serve"]
    if arguments and not arguments[0].startswith("-") and not serving:
        hint = did_you_mean(arguments[0], ["serve"], most=0)
        raise InputError(f"palinka atlas takes options, or `serve`, not {arguments[0]!r}{hint}")
    parser = _parser(serving)
    given = move_configs_first(arguments[int(serving) :])
    settings = parser.parse_args(given)
    path = runs.checkpoint_named(settings.ckpt_path)
    stored = checkpoint.read(path)
    if data := _data_settings(stored):
        settings = parser.parse_args(with_overrides(given, {"data": data}))
    made = parser.instantiate(settings)
    module = SparseAutoencoderModule.load_from_checkpoint(path, map_location="cpu").eval()
    checkpoint.check_matches(stored, module.autoencoder, made.data, resume=False)
    if serving:
        return _serve(made.data, module, expanded(made.atlas), made.port)
    analyses = expanded(made.analyses) if made.analyses else runs.findings_folder(path)
    return _write(made.data, module, made.output, analyses, made.options)


def parsers() -> dict[str, ConfigArgumentParser]:
    """Parsers of `palinka atlas` and `palinka atlas serve`."""
    return {"atlas": _parser(serving=False), "atlas serve": _parser(serving=True)}


def _parser(serving: bool) -> ConfigArgumentParser:
    parser = ConfigArgumentParser(
        prog=f"palinka atlas{' serve' if serving else ''}",
        description=(
            "Open an atlas on 127.0.0.1, with a box for text of your own."
            if serving
            else "Write a site about every latent of a checkpoint, which a browser opens from the"
            " disk. `palinka atlas serve --help` is about typing text of your own."
        ),
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML configuration.")
    parser.add_argument(
        "--ckpt_path",
        type=str,
        required=True,
        help="A checkpoint of `palinka fit` or `import`; `last` is that of the last run.",
    )
    if serving:
        parser.add_argument("--atlas", type=str, required=True, help="Output of `palinka atlas`.")
        parser.add_argument("--port", type=int, default=0, help="Port; 0 for any free one.")
    else:
        parser.add_argument(
            "--output", type=str, required=True, help="The folder; an atlas there is replaced."
        )
        parser.add_argument(
            "--analyses",
            type=str | None,
            default=None,
            help="A folder with findings; by default where `analyze` keeps the checkpoint's.",
        )
        parser.add_class_arguments(Options, "options", help="How much to show of each latent.")
    parser.add_class_arguments(
        ActivationDataModule,
        "data",
        help="Source of rows and texts; defaults to that of the fit.",
    )
    return parser


def _data_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the data module in a checkpoint; an imported one has none."""
    settings = stored.get("datamodule_hyper_parameters")
    if not isinstance(settings, Mapping):
        return {}
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def _write(
    data: ActivationDataModule,
    module: SparseAutoencoderModule,
    output: str,
    analyses: Path,
    options: Options,
) -> int:
    """Measure the checkpoint as `palinka validate` does, and write the atlas."""
    writer = WriteAtlas(output, str(analyses), options)
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
