"""A training step with few latents on a GPU, in bfloat16 with float32 weights, and its bound.

python benchmarks/gpu_step.py
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from harness import Case, Rival, report
from palinka.autoencoders import KSparseAutoencoder, linear
from peers import Setting
from training_step import PalinkaStep

os.environ["PALINKA_TRITON"] = "1"
ROWS, LATENTS = 8192, 24576
SHAPES = ((768, 32), (768, 64), (3072, 32), (3072, 64))


def step(setting: Setting, device: str, density: float) -> Callable[[], float]:
    """Our step, with lists up to a share of kept latents."""
    autoencoder = KSparseAutoencoder(setting.width, setting.latents, setting.k)
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(setting.dictionary)
    taken = PalinkaStep(autoencoder, setting.batch.to(device), autocast=torch.bfloat16)
    taken.module.to(device)

    def run() -> float:
        linear.TRITON_DENSITY = density
        return taken()

    return run


def compiled_plain(setting: Setting, device: str) -> Callable[[], float]:
    """The definition and its loss, compiled by torch."""
    weight = setting.dictionary.to(device).clone().requires_grad_()
    batch = setting.batch.to(device)
    optimizer = torch.optim.Adam([weight], lr=1e-4, fused=True)

    @torch.compile
    def loss_of(weight: Tensor) -> Tensor:
        latents = torch.relu(batch @ weight.T)
        kept = latents * (latents >= torch.topk(latents, setting.k, dim=1).values[:, -1:])
        return (kept @ weight - batch).float().square().mean()

    def run() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(weight)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def encode(setting: Setting, device: str) -> Callable[[], float]:
    """The encoder's product alone; a number of it is read, so that it has been made."""
    batch = setting.batch.to(device, torch.bfloat16)
    weight = setting.dictionary.to(device, torch.bfloat16)
    return lambda: float((batch @ weight.T)[0, 0])


def agree(theirs: float, ours: float) -> str:
    """Losses before the first step, of the same weights, in bfloat16."""
    error = abs(theirs - ours) / abs(ours)
    if not error < 0.02:
        raise AssertionError(f"a loss of {theirs:.6g}, ours {ours:.6g}")
    return f"loss within {error:.1e}"


def case(rows: int, width: int, latents: int, k: int, device: str) -> Case:
    """One shape."""
    setting = Setting.drawn(rows, width, latents, k)
    return Case(
        f"{rows:,} rows of {width:,}, {latents:,} latents, k = {k}",
        ours=step(setting, device, linear.TRITON_DENSITY),
        rivals=[
            Rival("our dense form", step(setting, device, 0.0), check=agree),
            Rival("torch.compile", compiled_plain(setting, device), at_least=1.5, check=agree),
            Rival("bound: the encoder's product", encode(setting, device), at_most=1.7),
        ],
        rounds=7,
    )


def main() -> None:
    """Measure and report, where there is a GPU."""
    if not torch.cuda.is_available():
        print("no GPU")
        return
    report(
        "gpu_step",
        "A sparse training step on a GPU",
        [case(ROWS, width, LATENTS, k, "cuda") for width, k in SHAPES],
        remarks=f"On {torch.cuda.get_device_name()}; bfloat16 autocast, weights in float32, tied.",
    )


if __name__ == "__main__":
    main()
