"""One process of a sweep on several, started by `test_sweep.py`; writes what it found.

Trains each variant alone and all of them as a sweep, on its share of the same batches.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from palinka.autoencoders import BatchTopKAutoencoder, KSparseAutoencoder
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.sweep import of_variant


def module(kind: type, seed: int, **arguments: int) -> SparseAutoencoderModule:
    torch.manual_seed(seed)
    return SparseAutoencoderModule(
        kind(8, 16, **arguments), decorrelation_weight=0.1, dead_after_tokens=33
    )


VARIANTS: dict[str, Callable[[], SparseAutoencoderModule]] = {
    "a": lambda: module(KSparseAutoencoder, 0, k=2, unit_norm=True),
    "b": lambda: module(BatchTopKAutoencoder, 1, k=3),
}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    batches = torch.randn(10, 8, 8, generator=torch.Generator().manual_seed(0))
    share = [batch.chunk(2)[rank] for batch in batches]

    def ended(fitted: LightningModule, name: str) -> tuple[dict[str, object], dict[str, float]]:
        trainer = Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=1,
            log_every_n_steps=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        loader = DataLoader(share, batch_size=None)
        trainer.fit(fitted, loader, loader)
        path = folder / f"{name}.ckpt"
        trainer.save_checkpoint(path)
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        return torch.load(path, weights_only=True), metrics

    sweep, metrics = ended(SweepModule({name: make() for name, make in VARIANTS.items()}), "sweep")
    found = {"together": metrics, "alone": {}, "states": {}}
    for name, make in VARIANTS.items():
        checkpoint, alone = ended(make(), name)
        found["alone"] |= {f"{name}/{key}": value for key, value in alone.items()}
        mine = of_variant(sweep, name)
        found["states"][name] = [
            (one["state_dict"], one["optimizer_states"]) for one in (mine, checkpoint)
        ]
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
