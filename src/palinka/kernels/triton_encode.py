"""The encoder's matrix product in Triton, which notes where its large values are as it is made."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from palinka.kernels.triton_jit import kernel, keys_of

# Neighboring latents of which the largest is noted.
GROUP = 16
# Rows and latents of a tile, and its inputs at a time by the bytes of one: what fits three times
# into the shared memory of every GPU since the A100.
TILE_ROWS, TILE_LATENTS, TILE_INPUTS = 128, 128, {2: 64, 4: 32}
# Tiles of rows that are made one after the other from the same latents, for the cache.
BAND = 8


@kernel
def _encode(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    largest,
    rows,
    latents,
    inputs,
    groups,
    x_row,
    weight_row,
    with_bias: tl.constexpr,
    precision: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_latents: tl.constexpr,
    tile_inputs: tl.constexpr,
    group: tl.constexpr,
    band: tl.constexpr,
):
    tiles_down = tl.cdiv(rows, tile_rows)
    tiles_across = tl.cdiv(latents, tile_latents)
    program = tl.program_id(0)
    first = program // (band * tiles_across) * band
    height = tl.minimum(tiles_down - first, band)
    place = program % (band * tiles_across)
    down, across = first + place % height, place // height
    row = (down * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)
    latent = (across * tile_latents + tl.arange(0, tile_latents)).to(tl.int64)
    step = tl.arange(0, tile_inputs)
    total = tl.zeros((tile_rows, tile_latents), dtype=tl.float32)
    for start in range(0, inputs, tile_inputs):
        column = start + step
        left = tl.load(
            x + row[:, None] * x_row + column[None, :],
            mask=(row[:, None] < rows) & (column[None, :] < inputs),
            other=0.0,
        )
        right = tl.load(
            weight + latent[None, :] * weight_row + column[:, None],
            mask=(latent[None, :] < latents) & (column[:, None] < inputs),
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=precision)
    if with_bias:
        total += tl.load(bias + latent, mask=latent < latents, other=0.0).to(tl.float32)[None, :]
    # Rounded before it is compared, as what the plain form compares has been.
    rounded = total.to(out.dtype.element_ty)
    tl.store(
        out + row[:, None] * latents + latent[None, :],
        rounded,
        mask=(row[:, None] < rows) & (latent[None, :] < latents),
    )
    keys = tl.where(latent[None, :] < latents, keys_of(rounded.to(tl.float32)), 0)
    tops = tl.max(tl.reshape(keys, (tile_rows, tile_latents // group, group)), axis=2)
    place_of_group = across * (tile_latents // group) + tl.arange(0, tile_latents // group)
    tl.store(
        largest + row[:, None] * groups + place_of_group[None, :],
        tops,
        mask=(row[:, None] < rows) & (place_of_group[None, :] < groups),
    )


def encode(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`W x + b`, and the largest of every `GROUP` neighbors of each row.

    Sums are in float32; float32 inputs are multiplied as
    `torch.set_float32_matmul_precision` says.

    Args:
        x: `(rows, inputs)`, in float32, bfloat16 or float16.
        weight: `(latents, inputs)`, in the same dtype.
        bias: `(latents,)`, in the same dtype.

    Returns:
        `(rows, latents)`, in the same dtype, and the keys of the largest, int32
        `(rows, groups)`.
    """
    x, weight = x.contiguous(), weight.contiguous()
    latents = len(weight)
    groups = triton.cdiv(latents, GROUP)
    out = x.new_empty(len(x), latents)
    largest = torch.empty(len(x), groups, dtype=torch.int32, device=x.device)
    exact = torch.get_float32_matmul_precision() == "highest"
    if len(x):
        _encode[(triton.cdiv(len(x), TILE_ROWS) * triton.cdiv(latents, TILE_LATENTS),)](
            x,
            weight,
            weight if bias is None else bias.contiguous(),
            out,
            largest,
            len(x),
            latents,
            x.shape[1],
            groups,
            x.stride(0),
            weight.stride(0),
            with_bias=bias is not None,
            precision="ieee" if exact else "tf32",
            tile_rows=TILE_ROWS,
            tile_latents=TILE_LATENTS,
            tile_inputs=TILE_INPUTS[x.element_size()],
            group=GROUP,
            band=BAND,
            num_warps=8,
            num_stages=3,
        )
    return out, largest
