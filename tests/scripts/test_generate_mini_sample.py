from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of ten tokens, that ends its documents often."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=10, n_positions=12, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    path = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


def test_documents_end_at_end_of_text_or_at_the_context(script: ModuleType, folder: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel.from_pretrained(folder)
    documents = list(islice(script.generate_documents(model, 16, 1.0, 1.0), 60))
    lengths = {len(document) for document in documents}
    assert all(0 not in document for document in documents)
    assert min(lengths) >= 1
    assert max(lengths) == 11  # the end-of-text token before them is part of the context
    assert len(lengths) > 3


def test_the_sample_has_every_document_in_order(script: ModuleType, tmp_path: Path) -> None:
    documents = (np.arange(length) for length in range(1, 100))
    script.write_sample(documents, 20, tmp_path / "sample.safetensors")
    sample = load_file(tmp_path / "sample.safetensors")
    assert (sample["tokens"].dtype, sample["offsets"].dtype) == (np.uint16, np.int64)
    assert sample["offsets"].tolist() == [0, 1, 3, 6, 10, 15, 21]
    assert sample["tokens"].tolist() == [i for length in range(1, 7) for i in range(length)]
