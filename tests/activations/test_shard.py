import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from palinka.data.format import DTYPES, Layout, ShardShape, shard_name

shapes = st.builds(
    lambda width, dtype, context, skip, blocks, index: ShardShape(
        Layout(width, dtype, context, blocks, min(skip, context - 1)), index, blocks
    ),
    *(st.integers(1, 9), st.sampled_from(list(DTYPES)), st.integers(1, 9), st.integers(0, 3)),
    *(st.integers(1, 9), st.integers(0, 200_000)),
)


@given(shapes)
def test_the_safetensors_library_reads_the_header(
    tmp_path_factory: pytest.TempPathFactory, shape: ShardShape
) -> None:
    path = tmp_path_factory.getbasetemp() / "shard.safetensors"
    content = np.random.default_rng(0).bytes(shape.bytes - len(shape.header))
    path.write_bytes(shape.header + content)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "palinka-activations",
            "version": "1",
            "shard": str(shape.index),
        }
        activations = file.get_tensor("activations")
        tokens, positions = file.get_tensor("tokens"), file.get_tensor("positions")
        index = file.get_tensor("index")
    context = shape.layout.context_length
    assert activations.shape == (shape.rows, shape.layout.width)
    assert activations.dtype == shape.layout.torch_dtype
    assert tokens.shape == positions.shape == (shape.blocks, context)
    assert index.shape == (shape.rows,)
    file_bytes = path.read_bytes()
    assert shape.activations_start % 64 == 0
    for tensor, start in (
        (activations, shape.activations_start),
        (tokens, shape.table_start("tokens")),
        (positions, shape.table_start("positions")),
        (index, shape.table_start("index")),
    ):
        expected = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert file_bytes[start : start + len(expected)] == expected


def test_header_never_changes() -> None:
    shape = ShardShape(Layout(2, "bfloat16", 4, 3, skip=1), index=7, blocks=2)
    text = (
        b'{"__metadata__":{"format":"palinka-activations","version":"1","shard":"7"},'
        b'"tokens":{"dtype":"I32","shape":[2,4],"data_offsets":[0,32]},'
        b'"documents":{"dtype":"I32","shape":[2,4],"data_offsets":[32,64]},'
        b'"positions":{"dtype":"I32","shape":[2,4],"data_offsets":[64,96]},'
        b'"index":{"dtype":"I32","shape":[6],"data_offsets":[96,120]},'
        b'"activations":{"dtype":"BF16","shape":[6,2],"data_offsets":[120,144]}}'
    )
    length = len(shape.header) - 8
    assert shape.header == length.to_bytes(8, "little") + text.ljust(length)
    assert 0 <= length - len(text) < 64


def test_places_leave_out_skipped_positions() -> None:
    shape = ShardShape(Layout(2, "float16", 4, 2, skip=1), index=0, blocks=2)
    assert shape.places(np.arange(6)).tolist() == [1, 2, 3, 5, 6, 7]
    assert sorted(shape.order().tolist()) == list(range(6))


def test_each_shard_has_its_own_order() -> None:
    layout = Layout(2, "float16", 16, 4, seed=1)
    orders = {tuple(ShardShape(layout, index, 4).order().tolist()) for index in range(4)}
    assert len(orders) == 4


def test_file_names() -> None:
    assert shard_name(0) == "shard-00000.safetensors"
    assert shard_name(123456) == "shard-123456.safetensors"
