"""One process of a run on several, started by `test_processes.py`; writes what it found.

Every process computes the penalties of its share of the same latents, and trains on its share of
the same batches. What rank 0 writes must not depend on how many processes there are.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from palinka.autoencoders import KSparseAutoencoder, MatryoshkaAutoencoder
from palinka.autoencoders.distributed import gather_rows, world
from palinka.autoencoders.kernels import batch_threshold, squared_covariance
from palinka.training import SparseAutoencoderModule

# Fewer rows than latents, and more: the two forms of the penalty.
LATENT_DIMS = (48, 6)


class Recorder(Callback):
    """Keeps what is logged, and saves in the middle, on a step that is not logged."""

    def __init__(self, checkpoint: Path) -> None:
        self.logged: list[dict[str, float]] = []
        self.checkpoint = checkpoint

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, index: int
    ) -> None:
        self.logged.append({name: float(v) for name, v in trainer.callback_metrics.items()})
        if index == 6:
            trainer.save_checkpoint(self.checkpoint)


def penalty(rank: int, processes: int, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Value of the whole batch, and what averaging over processes makes of the gradients."""
    generator = torch.Generator().manual_seed(latent_dim)
    latents = torch.randn(16, latent_dim, generator=generator).relu().double()
    share = latents.chunk(processes)[rank].clone().requires_grad_()
    value = squared_covariance(share, world())
    value.backward()
    assert share.grad is not None
    gradient = torch.zeros_like(latents)
    gradient.chunk(processes)[rank].copy_(share.grad / processes)
    if processes > 1:
        dist.all_reduce(gradient)
    return value.detach(), gradient


def training(rank: int, processes: int, latent_dim: int, folder: Path) -> dict[str, Any]:
    """Fifty steps on batches of 16, a validation on 15 rows, and a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(50, 16, 8, generator=generator).double()
    # Batches of nine and six rows; the second of two processes gets three and none of them.
    validation = torch.randn(15, 8, generator=generator).double() + 3.0
    rows = [range(9), range(9, 15)]
    if processes > 1:
        rows = [[range(6), range(9, 15)], [range(6, 9), range(0)]][rank]
    torch.manual_seed(0)
    middle, end = (folder / f"{processes}-{latent_dim}-{name}.ckpt" for name in ("middle", "end"))
    recorder = Recorder(middle)
    module = SparseAutoencoderModule(
        KSparseAutoencoder(8, latent_dim, k=2),
        decorrelation_weight=0.1,
        dead_after_tokens=33,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_epochs=1,
        log_every_n_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[recorder],
        default_root_dir=folder,
    )
    trainer.fit(
        module,
        DataLoader([batch.chunk(processes)[rank] for batch in batches], batch_size=None),
        DataLoader([validation[list(share)] for share in rows], batch_size=None),
    )
    trainer.save_checkpoint(end)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        "logged": recorder.logged,
        "measured": measured,
        "states": [torch.load(path, weights_only=True)["state_dict"] for path in (middle, end)],
    }


class FirstRows(LightningDataModule):
    """Batches that the processes share, and rows to begin from."""

    def __init__(self, rank: int, processes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        batches = torch.randn(12, 16, 8, generator=generator).double() + 2.0
        self.batches = [batch.chunk(processes)[rank] for batch in batches]
        # Even if the processes saw other rows, they would begin alike.
        self.first = batches[0] + 0.1 * rank

    def training_rows(self, count: int) -> Tensor:
        return self.first[:count]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


def thresholds(rank: int, processes: int) -> list[float]:
    """Also where one process holds nearly all of the largest values, and where there are ties."""
    found = []
    for seed, k, lopsided in [(0, 1, 0.0), (1, 3, 0.0), (2, 3, 9.0), (3, 5, 0.5), (4, 12, 1.0)]:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(16, 12, generator=generator).relu()
        values[:8] += lopsided
        if seed == 1:
            values = values.round()
        found.append(float(batch_threshold(values.chunk(processes)[rank], k, world())))
    return found


def nested(rank: int, processes: int, folder: Path) -> dict[str, Any]:
    """Twelve steps of an architecture that chooses from the batch and begins from the data."""
    torch.manual_seed(rank)  # every process begins with the weights of the first
    recorder = Recorder(folder / f"{processes}-nested.ckpt")
    module = SparseAutoencoderModule(
        MatryoshkaAutoencoder(8, 64, k=2),
        sparsity_weight=0.1,
        decorrelation_weight=0.01,
        dead_after_tokens=33,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.2),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_epochs=1,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[recorder],
        default_root_dir=folder,
    )
    trainer.fit(module, FirstRows(rank, processes))
    every_threshold, _ = gather_rows(module.autoencoder.threshold.reshape(1, 1), world())
    return {
        "state": module.state_dict(),
        "logged": recorder.logged,
        "thresholds": every_threshold.flatten().tolist(),
    }


def main(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes
        )
    found: dict[str, Any] = {
        str(latent_dim): {
            "penalty": penalty(rank, processes, latent_dim),
            "training": training(rank, processes, latent_dim, folder),
        }
        for latent_dim in LATENT_DIMS
    }
    found["thresholds"] = thresholds(rank, processes)
    found["nested"] = nested(rank, processes, folder)
    if rank == 0:
        torch.save(found, folder / f"{processes}.pt")
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
