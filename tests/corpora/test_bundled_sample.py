import numpy as np
from safetensors.numpy import load_file

from palinka.assets import mini_sample_file
from palinka.data import BundledSample


def test_documents_are_all_tokens_of_the_file_in_order() -> None:
    documents = list(BundledSample().documents())
    sample = load_file(mini_sample_file())
    assert len(documents) == len(sample["offsets"]) - 1
    tokens = [document.tokens for document in documents if document.tokens is not None]
    assert len(tokens) == len(documents)
    assert {array.dtype for array in tokens} == {np.dtype(np.int64)}
    np.testing.assert_array_equal(np.concatenate(tokens), sample["tokens"])
    assert len({document.name for document in documents}) == len(documents)


def test_fingerprint_is_stable() -> None:
    assert BundledSample().fingerprint() == BundledSample().fingerprint()
