"""What TensorBoard shows beside plain curves: a layout, and hyper-parameters with results."""

import struct
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image import metadata
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from palinka.callbacks.trained import trained
from palinka.callbacks.variant_logger import VariantLogger

# Category -> chart -> (kind, tags), as `SummaryWriter.add_custom_scalars` takes it. Tags are
# regular expressions for a tag's beginning: `val/fvu` would bring `val/fvu_legacy` along.
LAYOUT: dict[str, dict[str, tuple[str, list[str]]]] = {
    "the story of the run": {
        "loss and its parts": (
            "Multiline",
            [
                "loss/total$",
                "loss/reconstruction$",
                "loss/sparsity$",
                "loss/decorrelation$",
                "loss/auxiliary$",
            ],
        ),
        "fraction of variance unexplained": ("Multiline", ["reconstruction/fvu$", "val/fvu$"]),
        "latents per token": ("Multiline", ["sparsity/l0$", "val/l0$"]),
        "dead latents": ("Multiline", ["sparsity/dead$", "val/dead$"]),
        "increase of the cross-entropy (nats), where measured": ("Multiline", ["val/ce_delta$"]),
        "tokens per second": ("Multiline", ["throughput/tokens_per_second$"]),
        "share of time spent waiting for data": ("Multiline", ["throughput/loader_wait$"]),
    },
}


def tensorboard_writers(trainer: pl.Trainer) -> Iterator[SummaryWriter]:
    """The event writers of the run's TensorBoard loggers, on the process that logs."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger) and not isinstance(logger, VariantLogger):
            yield logger.experiment


def add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """Log a figure under a tag, with its caption, which TensorBoard's IMAGES page has beside it."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi)
    # Width and height stand at a fixed place of the file.
    size = [str(number).encode() for number in struct.unpack(">II", png.getvalue()[16:24])]
    # In the form that TensorBoard itself writes now; its server takes no caption of the older form,
    # which torch writes.
    described = metadata.create_summary_metadata(tag, str(figure.get_label()))
    value = Summary.Value(
        tag=tag, metadata=described, tensor=tensor_util.make_tensor_proto([*size, png.getvalue()])
    )
    events: Any = writer
    events._get_file_writer().add_summary(Summary(value=[value]), step)


def all_writers(trainer: pl.Trainer) -> Iterator[SummaryWriter]:
    """Those of the run, and those of a sweep's variants."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            yield logger.experiment


class TensorBoardDashboard(Callback):
    """Lays out the custom-scalars page, and ends a run with its hyper-parameters and results.

    The results stand beside the hyper-parameters as `final/…`, so that runs can be compared
    in TensorBoard's HPARAMS tab; each variant of a sweep has its own. Other loggers are left alone.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the layout of the custom-scalars page."""
        for writer in all_writers(trainer):
            writer.add_custom_scalars(LAYOUT)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the hyper-parameters together with the last validation's results."""
        if not trainer.is_global_zero:
            return
        for one in trained(trainer, pl_module):
            results = {
                f"final/{name.removeprefix('val/')}": float(value)
                for name, value in one.metrics.items()
                if name.startswith("val/")
            }
            settings = dict(flattened({**one.module.hparams, **one.seed}))
            for logger in one.loggers if results else ():
                if isinstance(logger, TensorBoardLogger):
                    logger.log_hyperparams(settings, results)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `outer/inner` names with values that TensorBoard can show."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}/")
        else:
            shown = isinstance(value, (bool, int, float, str, torch.Tensor))
            yield f"{prefix}{name}", value if shown else str(value)
