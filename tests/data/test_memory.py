from typing import TYPE_CHECKING

import numpy as np
import torch

from palinka.data import ActivationLoader, Context, MemoryRows

if TYPE_CHECKING:
    from conftest import Corpora


def test_rows_and_their_text_are_those_given_whatever_is_done_with_what_was_read(
    corpus: "Corpora",
) -> None:
    small = corpus(dtype="bfloat16")
    tokens, documents, positions = (table.ravel() for table in small.tables)
    memory = MemoryRows(small.activations, Context(tokens, documents, positions), "named")
    assert (memory.rows, memory.width, memory.dtype) == (40, 3, torch.bfloat16)
    assert memory.identity == "named"
    mean = small.activations.double().numpy().mean(axis=0)
    np.testing.assert_allclose(memory.statistics.mean, mean, rtol=1e-12)
    served = []
    for batch in ActivationLoader(memory, 7, drop_last=False):
        served += batch[:, 0].int().tolist()
        batch.fill_(0)
    memory.read_rows(0, 8).fill_(0)
    assert sorted(served) == list(range(40)) != served
    assert torch.equal(memory.read_rows(0, 40), small.activations)
    for row in range(40):
        context = memory.context(row)
        assert context.tokens.tolist() == list(range(40))
        assert (context.offset, context.document, context.position) == (row, row // 7, row % 7)
