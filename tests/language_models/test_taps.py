import torch
from hypothesis import given
from hypothesis import strategies as st

from palinka.language_models.sites import Part, Tap, by_token, output_tensor, with_output_tensor


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 5))
def test_a_part_is_what_a_loop_over_heads_finds(
    groups: int, size: int, index: int, tokens: int
) -> None:
    fused = torch.randn(2, tokens, groups * 3 * size)
    columns = [
        group * 3 * size + index * size + within
        for group in range(groups)
        for within in range(size)
    ]
    part = Part(index, groups)
    assert torch.equal(part.take(fused), fused[..., columns])

    new = torch.randn(2, tokens, groups * size)
    before = fused.clone()
    expected = fused.clone()
    expected[..., columns] = new
    assert torch.equal(part.put(fused, new), expected)
    assert torch.equal(fused, before)


def test_a_part_that_lies_side_by_side_is_taken_without_a_copy() -> None:
    fused = torch.randn(2, 5, 12)
    taken = Tap("module", part=Part(1)).take(fused)
    assert taken.data_ptr() == fused[..., 4:].data_ptr()


def test_the_tensor_of_an_output_is_the_first_of_a_tuple_or_mapping() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert output_tensor(one) is one
    assert output_tensor((one, two)) is one
    assert output_tensor({"first": one, "second": two}) is one
    assert output_tensor((None, one)) is None
    assert output_tensor(()) is None
    assert with_output_tensor(one, two) is two
    assert with_output_tensor((one, None), two) == (two, None)
    assert with_output_tensor({"first": one, "second": 3}, two) == {"first": two, "second": 3}


def test_one_vector_per_token_is_seen_in_every_layout() -> None:
    values = torch.randn(2, 3, 4)
    for layout in (values, values.flatten(0, 1)):
        seen = by_token(layout, 2, 3)
        assert seen is not None
        assert torch.equal(seen, values)
    shared = by_token(values[:1], 2, 3)
    assert shared is not None
    assert torch.equal(shared, values[:1].expand(2, 3, 4))
    for shape in [(2, 3), (3, 3, 4), (2, 4, 3, 4), (5, 4), (2, 1, 4)]:
        assert by_token(torch.zeros(shape), 2, 3) is None
