"""Let the mini GPT-2 write the sample of text that comes with the package.

Every document is what the model writes after an end-of-text token, until it writes
another or its context is full. The sample is a safetensors file with `tokens`, all documents
one after the other as uint16 without the end-of-text tokens, and `offsets`, where each document
starts, as int64, with the total at the end.

    python scripts/generate_mini_sample.py --output src/palinka/assets/mini_sample.safetensors
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import GPT2LMHeadModel

from palinka.assets import mini_gpt2_folder, mini_sample_file
from palinka.errors import progress


def generate_documents(
    model: GPT2LMHeadModel, batch_size: int, temperature: float, top_p: float
) -> Iterator[NDArray[np.int64]]:
    """Sample documents without end, as token ids `(length,)` without end-of-text tokens.

    Args:
        model: The language model; its configuration names the end-of-text token.
        batch_size: How many documents are written at once.
        temperature: Below 1, likely tokens become likelier.
        top_p: Sample from the likeliest tokens that together have this probability.
    """
    end_of_text = model.config.eos_token_id
    assert isinstance(end_of_text, int)
    prompts = torch.full((batch_size, 1), end_of_text)
    while True:
        written = model.generate(  # type: ignore[misc]
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            max_length=model.config.n_positions,
            pad_token_id=end_of_text,
        )
        for row in written[:, 1:].numpy():
            ends = np.flatnonzero(row == end_of_text)
            document = row[: ends[0]] if len(ends) else row
            if len(document):
                yield document


def write_sample(documents: Iterator[NDArray[np.int64]], tokens: int, output: Path) -> None:
    """Write documents until there are at least `tokens` tokens."""
    taken: list[NDArray[np.uint16]] = []
    offsets = [0]
    with progress("writing the sample", tokens, "tokens") as bar:
        while offsets[-1] < tokens:
            document = next(documents)
            taken.append(document.astype(np.uint16))
            offsets.append(offsets[-1] + len(document))
            bar.update(len(document))
    sample: dict[str, NDArray[Any]] = {
        "tokens": np.concatenate(taken),
        "offsets": np.asarray(offsets, dtype=np.int64),
    }
    save_file(sample, output)


def main(arguments: list[str] | None = None) -> None:
    """Run the script with the arguments of the command line, or with those given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=mini_gpt2_folder(), help="model folder")
    parser.add_argument("--output", type=Path, default=mini_sample_file(), help="file to write")
    parser.add_argument("--tokens", type=int, default=430_000, help="at least this many tokens")
    parser.add_argument("--batch-size", type=int, default=64, help="documents at once")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    model = GPT2LMHeadModel.from_pretrained(options.model, dtype=torch.float32)
    documents = generate_documents(model, options.batch_size, options.temperature, options.top_p)
    write_sample(documents, options.tokens, options.output)


if __name__ == "__main__":
    main()
