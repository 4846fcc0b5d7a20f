"""One process of a run whose latents are divided, started by `test_sharding.py`.

Every process compares the passes and gradients of its slice with an undivided twin of its own.
Then it trains on its share of the batches; what rank 0 writes must not depend on the devices.
"""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from palinka.autoencoders import KSparseAutoencoder
from palinka.autoencoders.kernels import kth_largest, squared_covariance_plain
from palinka.autoencoders.sharded import ShardedAutoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule
from palinka.training.losses import Objective, StepContext, mse_l1_terms

STEPS, MIDDLE = 50, 20


class Recorder(Callback):
    """Keeps every step's loss and what is logged, and saves in the middle."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.losses: list[float] = []
        self.logged: list[dict[str, float]] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.checkpoint = checkpoint

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if trainer.global_step in (0, MIDDLE):
            self.gradients.append({n: whole(p.grad) for n, p in pl_module.named_parameters()})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Tensor, index: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.logged.append({name: float(v) for name, v in trainer.callback_metrics.items()})
        if self.checkpoint is not None and index == MIDDLE - 1:
            trainer.save_checkpoint(self.checkpoint)


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def compare_with_a_twin(mesh: DeviceMesh, case: random.Random) -> None:
    """Draw an autoencoder and a batch; compare losses, latents and gradients in float64."""
    shares, slices = mesh.size(0), mesh.size(1)
    input_dim, latent_dim = case.randint(1, 6), slices * case.randint(1, 6)
    rows = shares * case.randint(2, 9)
    torch.manual_seed(case.randint(0, 10**6))
    options = {
        name: case.random() < 0.5 for name in ("tied", "encoder_bias", "decoder_bias", "unit_norm")
    }
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
    objective = Objective(0.7, 0.3, 0, 0)

    expected = twin(x)
    penalty = 0.3 * squared_covariance_plain(expected.latents)
    losses = objective(mse_l1_terms(expected, StepContext(x, x)), 0)
    torch.testing.assert_close(losses.decorrelation, penalty)
    (losses.reconstruction + losses.sparsity + penalty).backward()

    sharded = ShardedAutoencoder(divided, mesh)
    mine = x.chunk(shares)[mesh.get_local_rank(0)]
    sharded.check_rows(mine)
    actual = sharded(mine)
    share = slice(mesh.get_local_rank(0) * len(mine), (mesh.get_local_rank(0) + 1) * len(mine))
    own = sharded.sharding.own(latent_dim)
    torch.testing.assert_close(actual.latents, expected.latents[share, own])
    torch.testing.assert_close(actual.reconstruction, expected.reconstruction[share])
    terms = objective(
        mse_l1_terms(actual, StepContext(mine, mine, sharded.sharding)), 0, sharded.sharding
    )
    value = torch.stack([term.detach() for term in terms.named.values()])
    dist.all_reduce(value)
    torch.testing.assert_close(
        value / mesh.size(), torch.stack([term.detach() for term in losses.named.values()])
    )
    terms.total.backward()
    sharded.average_gradients()
    for (name, parameter), (_, reference) in zip(
        divided.named_parameters(), twin.named_parameters(), strict=True
    ):
        torch.testing.assert_close(whole(parameter), reference.detach())
        torch.testing.assert_close(whole(parameter.grad), reference.grad, msg=f"{name} {options}")


def compare_a_threshold_over_everything(mesh: DeviceMesh) -> None:
    """What a selection over the batch of all processes asks for."""
    torch.manual_seed(1)
    parts = torch.randn(mesh.size(), 3, 5).mul(2).round()  # with ties
    mine = parts[dist.get_rank()].reshape(1, -1)
    for k in (1, 7, 16, parts.numel()):
        expected = parts.flatten().sort(descending=True).values[k - 1]
        assert kth_largest(mine, k, dist.group.WORLD).item() == expected.item()


def compare_what_cannot_be(mesh: DeviceMesh) -> None:
    class Other(KSparseAutoencoder):
        pass

    slices = mesh.size(1)
    with pytest.raises(InputError, match="a Other cannot be divided"):
        ShardedAutoencoder(Other(4), mesh)
    with pytest.raises(InputError, match=rf"latent_dim 9 cannot be divided over {slices} devices"):
        ShardedAutoencoder(KSparseAutoencoder(4, 9), mesh)
    with pytest.raises(InputError, match="different rows"):
        ShardedAutoencoder(KSparseAutoencoder(4), mesh).check_rows(
            torch.full((3, 4), float(dist.get_rank()))
        )


def compare_seeds(mesh: DeviceMesh) -> None:
    """Whoever holds the same must begin with the same, seeded or not."""
    torch.manual_seed(dist.get_rank())
    autoencoder = KSparseAutoencoder(4, decoder_bias=True)
    torch.nn.init.normal_(autoencoder.decoder_bias)
    ShardedAutoencoder(autoencoder, mesh)
    weight = autoencoder.encoder.weight.to_local().clone()
    dist.broadcast(weight, group=mesh["data_parallel"].get_group(), group_src=0)
    assert torch.equal(weight, autoencoder.encoder.weight.to_local())
    bias = autoencoder.decoder_bias.to_local().clone()
    dist.broadcast(bias, src=0)
    assert torch.equal(bias, autoencoder.decoder_bias.to_local())


def trainer_of(shares: int, slices: int, folder: Path, recorder: Recorder) -> Trainer:
    devices = shares * slices
    return Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else ModelParallelStrategy(shares, slices, False),
        max_epochs=1,
        log_every_n_steps=10,
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[recorder],
        default_root_dir=folder,
    )


def training(rank: int, shares: int, slices: int, folder: Path) -> dict[str, Any]:
    """Fifty steps on batches of 32, a validation, and the same again from the middle on."""
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(STEPS, 32, 8, generator=generator)
    # Unequal shares in as many batches each, as the loader gives; the second share is the smaller.
    validation = torch.randn(15, 8, generator=generator) + 3.0
    mine = rank // slices
    part = validation if shares == 1 else (validation[:10], validation[10:])[mine]
    found: dict[str, Any] = {}
    middle, end, again = (
        folder / f"{shares}x{slices}-{name}.ckpt" for name in ("middle", "end", "again")
    )
    for path, start in ((end, None), (again, middle)):
        torch.manual_seed(0)
        module = SparseAutoencoderModule(
            KSparseAutoencoder(8, 64, k=5, encoder_bias=True, decoder_bias=True, unit_norm=True),
            sparsity_weight=0.1,
            decorrelation_weight=0.1,
            dead_after_tokens=33,
            optimizer=lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
        )
        recorder = Recorder(middle if start is None else None)
        trainer = trainer_of(shares, slices, folder, recorder)
        # Lightning counts on from the middle, but begins to read at the front.
        loader = batches if start is None else batches.roll(-MIDDLE, dims=0)
        trainer.fit(
            module,
            DataLoader([batch.chunk(shares)[mine] for batch in loader], batch_size=None),
            DataLoader(part.split(3 if mine else 6), batch_size=None),
            ckpt_path=start,
        )
        trainer.save_checkpoint(path)
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if shares > 1:  # these belong to a batch
            del measured["val/loss/decorrelation"], measured["val/loss/total"]
        found[path.stem.partition("-")[2]] = {
            "losses": recorder.losses,
            "logged": recorder.logged,
            "gradients": recorder.gradients,
            "measured": measured,
        }
    if slices > 1:
        with pytest.raises(InputError, match="no device holds all latents"):
            module.encode(batches[0])
    return found


def main(rank: int, shares: int, slices: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if shares * slices > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=shares * slices
        )
        mesh = init_device_mesh(
            "cpu", (shares, slices), mesh_dim_names=("data_parallel", "tensor_parallel")
        )
        compare_seeds(mesh)
        compare_what_cannot_be(mesh)
        compare_a_threshold_over_everything(mesh)
        for seed in range(30):
            compare_with_a_twin(mesh, random.Random(seed))
    found = training(rank, shares, slices, folder)
    if rank == 0:
        torch.save(found, folder / f"{shares}x{slices}.pt")
    if shares * slices > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
