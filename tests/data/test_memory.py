from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from palinka.data.loader import ActivationLoader
from palinka.data.memory import MemoryRows
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import Corpora


@pytest.mark.parametrize("skip", [0, 2])
def test_it_holds_the_rows_of_the_cache_in_the_order_of_the_text(
    corpus: "Corpora", tmp_path: Path, skip: int
) -> None:
    small = corpus(skip=skip)
    memory, cache = small.in_memory(), small.write(tmp_path)
    assert (memory.rows, memory.width, memory.dtype) == (cache.rows, cache.width, cache.dtype)
    np.testing.assert_allclose(memory.statistics.mean, cache.statistics.mean, rtol=1e-12)
    by_token = {int(row[0]): row for row in cache.read_rows(0, cache.rows)}
    for number, row in enumerate(memory.read_rows(0, memory.rows)):
        context = memory.context(number)
        token = int(context.tokens[context.offset])
        assert torch.equal(row, by_token[token])
        assert (context.document, context.position) == (token // 7, token % 7)
        assert context.tokens.tolist() == list(range(token // 8 * 8, token // 8 * 8 + 8))
        assert context.offset == token % 8 >= skip


def test_the_loader_gives_every_row_once(corpus: "Corpora") -> None:
    memory = corpus(dtype="bfloat16").in_memory()
    batches = list(ActivationLoader(memory, 7, drop_last=False))
    assert sorted(torch.cat(batches)[:, 0].int().tolist()) == list(range(40))
    assert torch.cat(batches)[:, 0].int().tolist() != list(range(40))


def test_identity_is_that_of_the_content(corpus: "Corpora") -> None:
    small = corpus()
    assert small.in_memory().identity == small.in_memory().identity
    others = [
        corpus(dtype="float16").in_memory(),
        corpus(contexts=4).in_memory(),
        corpus(width=4).in_memory(),
        MemoryRows(small.activations * 2, small.tokens, small.documents, small.positions),
        MemoryRows(small.activations, small.tokens, small.documents + 1, small.positions),
    ]
    assert len({rows.identity for rows in (small.in_memory(), *others)}) == 6
    tables = (small.tokens, small.documents, small.positions)
    assert MemoryRows(small.activations, *tables, identity="named").identity == "named"


def test_changing_what_was_read_does_not_matter(
    corpus: "Corpora",
) -> None:
    memory = corpus().in_memory()
    for batch in ActivationLoader(memory, 8):
        batch.fill_(0)
    memory.read_rows(0, 8).fill_(0)
    assert torch.equal(memory.read_rows(0, 40), corpus().activations)


def test_shapes_that_do_not_fit_are_refused(corpus: "Corpora") -> None:
    small = corpus()
    tables = (small.tokens, small.documents, small.positions)
    for given in (
        (small.activations[:-1], *tables),
        (small.activations[0], *tables),
        (small.activations, *tables, 1),
        (small.activations, *tables[:2], small.positions[:, 1:]),
    ):
        with pytest.raises(InputError, match=r"for 5 contexts of 8 tokens, of which . are skipped"):
            MemoryRows(*given)


def test_nan_is_refused(corpus: "Corpora") -> None:
    small = corpus()
    activations = small.activations
    activations[3, 1] = float("nan")
    with pytest.raises(InputError, match="activations hold NaN or infinities"):
        MemoryRows(activations, small.tokens, small.documents, small.positions)
    with pytest.raises(InputError, match="row 40 asked of rows 0 to 39"):
        small.in_memory().context(40)
