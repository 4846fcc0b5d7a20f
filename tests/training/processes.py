"""One process of a run on several, started by the tests; rank 0 writes what it found.

What it finds must not depend on how many processes there are.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader

from palinka.autoencoders import BatchTopKAutoencoder, KSparseAutoencoder, MatryoshkaAutoencoder
from palinka.autoencoders.distributed import gather_rows, world
from palinka.autoencoders.kernels.decorrelation import squared_covariance, squared_covariance_plain
from palinka.autoencoders.kernels.topk import batch_threshold
from palinka.autoencoders.sharded import ShardedAutoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.losses import LossTerms, Objective, StepContext, loss_terms
from palinka.training.sweep import of_variant

STEPS, MIDDLE = 20, 8


class Recorder(Callback):
    """Keeps losses, logged values and gradients, and saves in the middle."""

    def __init__(self, checkpoint: Path | None = None, middle: int = MIDDLE) -> None:
        self.found: dict[str, list[Any]] = {"losses": [], "logged": [], "gradients": []}
        self.checkpoint, self.middle = checkpoint, middle

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if trainer.global_step in (0, self.middle):
            gradients = {name: whole(p.grad) for name, p in pl_module.named_parameters()}
            self.found["gradients"].append(gradients)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, index: int
    ) -> None:
        self.found["losses"].append(float(outputs["loss"]))
        self.found["logged"].append(values(trainer))
        if self.checkpoint is not None and index == self.middle - 1:
            trainer.save_checkpoint(self.checkpoint)


def values(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


module_of = partial(SparseAutoencoderModule, dead_after_tokens=33)


def loader(batches: Any, processes: int = 1, rank: int = 0) -> DataLoader:
    """This process's share of every batch."""
    return DataLoader([batch.chunk(processes)[rank] for batch in batches], batch_size=None)


def trainer_of(devices: int, strategy: Any = "ddp", **options: Any) -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: Any = dict.fromkeys((*off, "use_distributed_sampler"), False)
    strategy = strategy if devices > 1 else "auto"
    common: Any = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, **quiet}
    return Trainer(devices=devices, strategy=strategy, **common, **options)


def random_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def penalty(rank: int, processes: int, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Value of the whole batch, and what averaging over processes makes of the gradients."""
    latents = random_rows(16, latent_dim, seed=latent_dim).relu()
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
    """Twenty steps on batches of 16, a validation on 15 rows, and a checkpoint."""
    # Batches of nine and six rows; the second of two processes gets three and none of them.
    validation = random_rows(15, 8, seed=1) + 3.0
    rows = [range(9), range(9, 15)]
    if processes > 1:
        rows = [[range(6), range(9, 15)], [range(6, 9), range(0)]][rank]
    torch.manual_seed(0)
    middle, end = (folder / f"{processes}-{latent_dim}-{name}.ckpt" for name in ("middle", "end"))
    recorder = Recorder(middle, 7)  # a step that is not logged
    module = module_of(
        KSparseAutoencoder(8, latent_dim, k=2), 1.0, 0.1, optimizer=partial(SGD, lr=0.5)
    )
    trainer = trainer_of(processes, precision="64-true", log_every_n_steps=3, callbacks=[recorder])
    trainer.fit(
        module,
        loader(random_rows(STEPS, 16, 8), processes, rank),
        loader([validation[list(share)] for share in rows]),
    )
    trainer.save_checkpoint(end)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (middle, end)]
    return {**recorder.found, "measured": values(trainer), "states": states}


def thresholds(rank: int, processes: int) -> list[float]:
    """Also where one process holds nearly all of the largest values, and where there are ties."""
    found = []
    for seed, k, lopsided in [(0, 1, 0.0), (1, 3, 0.0), (2, 3, 9.0), (3, 5, 0.5), (4, 12, 1.0)]:
        rows = random_rows(16, 12, seed=seed, dtype=torch.float32).relu()
        rows[:8] += lopsided
        if seed == 1:
            rows = rows.round()
        found.append(float(batch_threshold(rows.chunk(processes)[rank], k, world())))
    return found


def nested(rank: int, processes: int) -> dict[str, Any]:
    """Twelve steps of an architecture that chooses from the batch and begins from the data."""
    torch.manual_seed(rank)  # every process begins with the weights of the first
    recorder, batches = Recorder(), random_rows(12, 16, 8) + 2.0
    module = module_of(MatryoshkaAutoencoder(8, 64, k=2), 0.1, 0.01, optimizer=partial(SGD, lr=0.2))
    data = LightningDataModule.from_datasets()
    # Even if the processes saw other rows, they would begin alike.
    data.training_rows = lambda count: (batches[0] + 0.1 * rank)[:count]  # type: ignore[attr-defined]
    data.train_dataloader = lambda: loader(batches, processes, rank)  # type: ignore[method-assign]
    trainer = trainer_of(processes, precision="64-true", log_every_n_steps=1, callbacks=[recorder])
    trainer.fit(module, datamodule=data)
    every_threshold, _ = gather_rows(module.autoencoder.threshold.reshape(1, 1), world())
    reached = every_threshold.flatten().tolist()
    return {**recorder.found, "state": module.state_dict(), "thresholds": reached}


def data_parallel(rank: int, processes: int, _: int, folder: Path) -> dict[str, Any]:
    """With fewer rows than latents, and more: the two forms of the penalty."""
    found: dict[str, Any] = {
        str(latent_dim): {
            "penalty": penalty(rank, processes, latent_dim),
            **training(rank, processes, latent_dim, folder),
        }
        for latent_dim in (48, 6)
    }
    return {**found, "thresholds": thresholds(rank, processes), "nested": nested(rank, processes)}


def compare_with_a_twin(mesh: DeviceMesh, case: random.Random) -> None:
    """Draw an autoencoder and a batch; compare losses, latents and gradients in float64."""
    shares, slices = mesh.size(0), mesh.size(1)
    input_dim, latent_dim = case.randint(1, 6), slices * case.randint(1, 6)
    rows = shares * case.randint(2, 9)
    torch.manual_seed(case.randint(0, 10**6))
    flags = ("tied", "encoder_bias", "decoder_bias", "unit_norm")
    options: Any = {name: case.random() < 0.5 for name in flags}
    twin = KSparseAutoencoder(input_dim, latent_dim, case.randint(1, latent_dim), **options)
    twin.double()
    x = torch.randn(rows, input_dim, dtype=torch.float64)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn_like(parameter))
            if case.random() < 0.5:  # on a coarse grid, so that latents tie
                parameter.mul_(2).round_().div_(2)
                x.mul_(2).round_().div_(2)
    divided = KSparseAutoencoder(input_dim, latent_dim, twin.k, **options).double()
    divided.load_state_dict(twin.state_dict())
    objective = Objective(0.7, 0.3)

    expected = twin(x)
    error = (expected.reconstruction - x).square().mean()
    terms = LossTerms(expected, error, expected.latents.mean())
    losses = objective(terms, 0)
    plain = 0.3 * squared_covariance_plain(expected.latents)
    torch.testing.assert_close(losses["decorrelation"], plain)
    (losses["reconstruction"] + losses["sparsity"] + plain).backward()

    sharded = ShardedAutoencoder(divided, mesh)
    place = mesh.get_local_rank(0)
    mine = x.chunk(shares)[place]
    sharded.check_rows(mine)
    actual = loss_terms(sharded, StepContext(mine, mine, sharded.sharding))
    share = slice(place * len(mine), (place + 1) * len(mine))
    own = sharded.sharding.own(latent_dim)
    torch.testing.assert_close(actual.output.latents, expected.latents[share, own])
    torch.testing.assert_close(actual.output.reconstruction, expected.reconstruction[share])
    ours = objective(actual, 0, sharded.sharding)
    value = torch.stack([term.detach() for term in ours.values()])
    dist.all_reduce(value)
    by_twin = torch.stack([term.detach() for term in losses.values()])
    torch.testing.assert_close(value / mesh.size(), by_twin)
    ours.total.backward()
    sharded.average_gradients()
    references = dict(twin.named_parameters())
    for name, parameter in divided.named_parameters():
        torch.testing.assert_close(whole(parameter), references[name].detach())
        message = f"{name} {options}"
        torch.testing.assert_close(whole(parameter.grad), references[name].grad, msg=message)


def compare_refusals(mesh: DeviceMesh) -> None:
    class Other(KSparseAutoencoder):
        pass

    with pytest.raises(InputError, match="a Other cannot be divided"):
        ShardedAutoencoder(Other(4), mesh)
    with pytest.raises(InputError, match=rf"latent_dim 9 cannot .* over {mesh.size(1)} devices"):
        ShardedAutoencoder(KSparseAutoencoder(4, 9), mesh)
    with pytest.raises(InputError, match="different rows"):
        ShardedAutoencoder(KSparseAutoencoder(4), mesh).check_rows(
            torch.full((3, 4), float(dist.get_rank()))
        )


def compare_seeds(mesh: DeviceMesh) -> None:
    """Whoever holds the same must begin with the same, seeded or not."""
    torch.manual_seed(dist.get_rank())
    autoencoder: Any = KSparseAutoencoder(4, decoder_bias=True)
    torch.nn.init.normal_(autoencoder.decoder_bias)
    ShardedAutoencoder(autoencoder, mesh)
    weight, bias = autoencoder.encoder.weight, autoencoder.decoder_bias
    for parameter, group in ((weight, mesh["data_parallel"].get_group()), (bias, None)):
        local = parameter.to_local().clone()
        dist.broadcast(local, group=group, group_src=0)
        assert torch.equal(local, parameter.to_local())


def sharded(rank: int, shares: int, slices: int, folder: Path) -> dict[str, Any]:
    """Comparisons with a twin; then twenty steps on batches of 32, and again from the middle on."""
    if shares * slices > 1:
        names = ("data_parallel", "tensor_parallel")
        mesh = init_device_mesh("cpu", (shares, slices), mesh_dim_names=names)
        compare_seeds(mesh)
        compare_refusals(mesh)
        for seed in range(15):
            compare_with_a_twin(mesh, random.Random(seed))
    batches = random_rows(STEPS, 32, 8, dtype=torch.float32)
    # Unequal shares in as many batches each, as the loader gives; the second share is the smaller.
    validation = random_rows(15, 8, seed=1, dtype=torch.float32) + 3.0
    mine = rank // slices
    part = validation if shares == 1 else (validation[:10], validation[10:])[mine]
    found: dict[str, Any] = {}
    middle, end, again = (
        folder / f"{shares}x{slices}-{name}.ckpt" for name in ("middle", "end", "again")
    )
    for path, start in ((end, None), (again, middle)):
        torch.manual_seed(0)
        sae = KSparseAutoencoder(8, 64, k=5, encoder_bias=True, decoder_bias=True, unit_norm=True)
        module = module_of(sae, 0.1, 0.1, optimizer=partial(Adam, lr=1e-3, fused=True))
        recorder = Recorder(middle if start is None else None)
        strategy = ModelParallelStrategy(shares, slices, False)
        limits: Any = {"log_every_n_steps": 4, "gradient_clip_val": 0.5}
        trainer = trainer_of(shares * slices, strategy, callbacks=[recorder], **limits)
        # Lightning counts on from the middle, but begins to read at the front.
        given = batches if start is None else batches.roll(-MIDDLE, dims=0)
        trainer.fit(
            module,
            loader(given, shares, mine),
            loader(part.split(3 if mine else 6)),
            ckpt_path=start,
        )
        trainer.save_checkpoint(path)
        measured = values(trainer)
        if shares > 1:  # these belong to a batch
            del measured["val/loss/decorrelation"], measured["val/loss/total"]
        found[path.stem.partition("-")[2]] = {**recorder.found, "measured": measured}
    if slices > 1:
        for use in (module.encode, lambda batch: module.predict_step(batch, 0)):
            with pytest.raises(InputError, match="no device holds all latents"):
                use(batches[0])
    return found


def sweep(rank: int, processes: int, _: int, folder: Path) -> dict[str, Any]:
    """Trains each variant alone and all of them as a sweep, on its share of the same batches."""

    def module(seed: int, kind: type, **arguments: Any) -> SparseAutoencoderModule:
        torch.manual_seed(seed)
        return module_of(kind(8, 16, **arguments), 1.0, 0.1)

    def ended(fitted: LightningModule, name: str) -> tuple[dict[str, Any], dict[str, float]]:
        trainer = trainer_of(processes, log_every_n_steps=3)
        share = loader(random_rows(10, 8, 8, dtype=torch.float32), processes, rank)
        trainer.fit(fitted, share, share)
        path = folder / f"{name}.ckpt"
        trainer.save_checkpoint(path)
        return torch.load(path, weights_only=True), values(trainer)

    variants: dict[str, Callable[[], SparseAutoencoderModule]] = {
        "a": lambda: module(0, KSparseAutoencoder, k=2, unit_norm=True),
        "b": lambda: module(1, BatchTopKAutoencoder, k=3),
    }
    made = SweepModule({name: make() for name, make in variants.items()})
    checkpoint, metrics = ended(made, "sweep")
    found: dict[str, Any] = {"together": metrics, "alone": {}, "states": {}}
    for name, make in variants.items():
        own, alone = ended(make(), name)
        found["alone"] |= {f"{name}/{key}": value for key, value in alone.items()}
        found["states"][name] = [
            (one["state_dict"], one["optimizer_states"])
            for one in (of_variant(checkpoint, name), own)
        ]
    return found


def main(rank: int, run: str, shares: int, slices: int, folder: Path) -> None:
    torch.set_num_threads(1)
    size = shares * slices
    if size > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    found = globals()[run](rank, shares, slices, folder)
    if rank == 0:
        torch.save(found, folder / f"{shares}x{slices}.pt")
    if size > 1:
        dist.destroy_process_group()
