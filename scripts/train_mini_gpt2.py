"""Train a mini GPT-2 on a folder of texts, or measure one on a text.

    python scripts/train_mini_gpt2.py --texts books --output mini --evaluate unseen.txt
    python scripts/train_mini_gpt2.py --evaluate unseen.txt

The first command trains a tokenizer and a model; the second measures the bundled model. The
tokenizer is a byte-level BPE in which every word of `single_tokens.yaml` is one token with the
space before it. Matrices of the blocks are trained with Muon, all else with AdamW. Needs
torch >= 2.9 for Muon.
"""

import argparse
import math
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from palinka.assets import mini_gpt2_folder
from palinka.data import TextFiles
from palinka.data.packing import tokenize_documents
from palinka.errors import InputError, progress

END_OF_TEXT = "<|endoftext|>"
WARMUP = 0.02
# Texts are hard-wrapped if no line is longer; lines of a paragraph then belong together.
WRAPPED_COLUMNS = 100


def single_token_words() -> list[str]:
    """The words that the tokenizer must have as one token, without the space before them."""
    groups = yaml.safe_load((mini_gpt2_folder() / "single_tokens.yaml").read_text())
    return [word for words in groups.values() for word in words]


def unwrap(text: str) -> str:
    """Join the lines of each paragraph of a hard-wrapped text; its length stays the same."""
    if max(map(len, text.splitlines()), default=0) > WRAPPED_COLUMNS:
        return text
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def train_tokenizer(
    texts: list[str], vocabulary: int, context_length: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every word of the list is a single token.

    The words are put into the training text so often that their merges come early: with the
    lowest weight, doubled from a ten-thousandth of the text on, at which all are single tokens.

    Raises:
        InputError: If the vocabulary is too small for that.
    """
    words = single_token_words()
    characters = sum(map(len, texts))
    for weight in ((16 + characters // 10_000) * 2**doublings for doublings in range(8)):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        repeated = (f" {word}" * weight for word in words)
        tokenizer.train_from_iterator(
            (text for part in (texts, repeated) for text in part), trainer
        )
        if all(len(tokenizer.encode(f" {word}").ids) == 1 for word in words):
            return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
                tokenizer_object=tokenizer,
                bos_token=END_OF_TEXT,
                eos_token=END_OF_TEXT,
                model_max_length=context_length,
            )
    raise InputError(
        f"a vocabulary of {vocabulary} has no room for the {len(words)} words that must be "
        "single tokens; give a larger one"
    )


def token_stream(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """All texts as one tensor of token ids `(tokens,)`, an end-of-text token after each."""
    end = np.array([tokenizer.eos_token_id])
    documents = tokenize_documents(enumerate(texts), tokenizer)
    pieces = [piece for _, ids in documents for piece in (ids, end)]
    return torch.from_numpy(np.concatenate(pieces))


@torch.inference_mode()
def evaluate(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[float, float]:
    """Bits per character and nats per token of a text, after an end-of-text token.

    The text is read in windows of the context length. Each begins with the last token of the one
    before, so that every token is predicted once, from what its own window has before it.
    """
    context = model.config.n_positions
    tokens = token_stream([text], tokenizer).roll(1).to(model.device)
    starts = range(0, len(tokens) - 1, context - 1)
    nats = 0.0
    for start in starts:
        window = tokens[start : start + context]
        logits = model(window[None, :-1]).logits[0].float()
        nats += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return nats / math.log(2) / len(text), nats / (len(tokens) - 1)


def new_model(tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, without dropout; a head for every 32 dimensions."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=options.context_length,
            n_embd=options.width,
            n_layer=options.blocks,
            n_head=max(1, options.width // 32),
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if ".h." in name and p.ndim == 2]
    others = [p for name, p in named if not (".h." in name and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(done: float) -> float:
    """The learning rate, relative to its peak, after a share of the training: up, then down."""
    return min((done + 1e-3) / WARMUP, (1 - done) / (1 - WARMUP))


def contexts(stream: Tensor, batch: int, length: int, seed: int) -> Iterator[Tensor]:
    """Batches of contexts `(batch, length)` from random places of the stream, without end."""
    if len(stream) < length:
        raise InputError(f"the texts have {len(stream)} tokens, fewer than one context of {length}")
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(length)
    while True:
        starts = torch.randint(len(stream) - length + 1, (batch, 1), generator=generator)
        yield stream[starts + offsets]


def train(model: GPT2LMHeadModel, stream: Tensor, options: argparse.Namespace) -> None:
    """Train in place for `options.steps` steps, or `options.minutes` if those are over first."""
    chosen = optimizers(model)
    groups = [group for optimizer in chosen for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    batches = contexts(stream, options.batch_size, options.context_length, options.seed)
    tokens_per_step = options.batch_size * options.context_length
    began = time.monotonic()
    with progress("training", options.steps * tokens_per_step, "tokens") as bar:
        for step in range(options.steps):
            minutes = (time.monotonic() - began) / 60
            done = max(step / options.steps, minutes / options.minutes)
            if done >= 1:
                break
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * rate(done)
            batch = next(batches).to(model.device)
            loss = model(batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in chosen:
                optimizer.step()
                optimizer.zero_grad()
            bar.update(tokens_per_step)
            bar.set_postfix(nats_per_token=f"{loss.item():.3f}")


def report(
    title: str, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, file: Path
) -> None:
    """Print how well the model predicts a text file."""
    text = "\n\n".join(unwrap(str(document)) for document in TextFiles(file).documents())
    bits, nats = evaluate(model, tokenizer, text)
    print(f"{title}: {bits:.3f} bits per character, {nats:.3f} nats per token on {file.name}")


def train_and_save(options: argparse.Namespace) -> None:
    """Train a tokenizer, unless there is one, and a model, and write both into one folder."""
    if (options.output / "config.json").exists():
        raise InputError(f"{options.output} holds a model already; give another --output")
    texts = [unwrap(str(document)) for document in TextFiles(options.texts).documents()]
    tokenizer: PreTrainedTokenizerBase
    if options.tokenizer is None:
        tokenizer = train_tokenizer(texts, options.vocabulary, options.context_length)
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = new_model(tokenizer, options)
    if options.evaluate:
        report("before the training", model, tokenizer, options.evaluate)
    train(model, token_stream(texts, tokenizer), options)
    tokenizer.save_pretrained(options.output)
    model.half().save_pretrained(options.output)  # type: ignore[no-untyped-call]


def run(options: argparse.Namespace) -> None:
    """Train where there are texts, and evaluate where there is a file for it."""
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    if options.texts is not None:
        train_and_save(options)
    if options.evaluate is not None:
        folder = options.output or mini_gpt2_folder()
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
        report(str(folder), model, AutoTokenizer.from_pretrained(folder), options.evaluate)


def main(arguments: list[str] | None = None) -> None:
    """Run the script with the arguments of the command line, or with those given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, help="file or folder of texts to train on")
    parser.add_argument("--output", type=Path, help="folder for the model, or to take it from")
    parser.add_argument("--evaluate", type=Path, help="text file to measure the model on")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer, to train none")
    parser.add_argument("--vocabulary", type=int, default=8192, help="entries of the tokenizer")
    parser.add_argument("--width", type=int, default=128, help="hidden size, a multiple of 32")
    parser.add_argument("--blocks", type=int, default=6, help="transformer blocks")
    parser.add_argument("--context-length", type=int, default=256, help="tokens in a context")
    parser.add_argument("--batch-size", type=int, default=32, help="contexts in a step")
    parser.add_argument("--steps", type=int, default=4500, help="steps of the optimizers")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.texts is None and options.evaluate is None:
        parser.error("give --texts to train a model, --evaluate to measure one, or both")
    if options.texts is not None and options.output is None:
        parser.error("give --output, a folder for the model that is trained on --texts")
    try:
        run(options)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
