"""The sample of text that the bundled mini GPT-2 wrote."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from safetensors.numpy import load_file

from palinka.assets import mini_sample_file
from palinka.corpora.corpus import Corpus, Document, Json


class BundledSample(Corpus):
    """Over 400,000 tokens that the bundled mini model wrote; needs no text from anywhere.

    Its documents are tokens of the mini model. For another tokenizer they are decoded, and the
    text is tokenized again.
    """

    def documents(self) -> Iterator[Document]:
        """What the model wrote between two end-of-text tokens, each a document."""
        sample = load_file(mini_sample_file())
        tokens, offsets = sample["tokens"], sample["offsets"]
        for index, (start, stop) in enumerate(pairwise(offsets)):
            yield Document(f"sample {index}", tokens=tokens[start:stop].astype(np.int64))

    def fingerprint(self) -> dict[str, Json]:
        """The hash of the sample's file."""
        digest = hashlib.sha256(mini_sample_file().read_bytes())
        return {"kind": "bundled sample", "sha256": digest.hexdigest()}
