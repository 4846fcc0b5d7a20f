"""Harvesting a model of GPT-2 small's shape at its middle block, to a cache on disk.

python benchmarks/harvest.py
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import Case, Rival, report
from language_model import CONTEXT, RandomTokens, save_random_gpt2
from palinka.data import Cache
from palinka.data.harvest import HarvestSpec, harvest
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.cpu import slow_products
from peers.absent import Absent
from peers.saelens_store import SAELensStore

SITE, HOOK, WIDTH = "blocks.6.mlp.pre", "blocks.6.mlp.hook_pre", 3072
TOKENS = 4096


class OurHarvest:
    """A harvest from tokens to a finished cache, with a model that is loaded already.

    Args:
        folder: The model's.
        dtype: What to compute in.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        reference = LanguageModelSpec(str(folder), dtype=dtype)
        self.model = LanguageModel.load(reference)
        self.spec = HarvestSpec(
            reference,
            SITE,
            RandomTokens(TOKENS // CONTEXT),
            context_length=CONTEXT,
            validation_fraction=0.0,
        )
        assert self.spec.key  # the weights are read once to tell caches apart
        self.tokens = torch.stack([torch.from_numpy(b.tokens) for b in self.spec.contexts()])
        self.root = Path(tempfile.mkdtemp())

    def __call__(self) -> Cache:
        """Harvest into an empty folder."""
        shutil.rmtree(self.root)
        return harvest(self.spec, self.root, load=lambda: self.model)

    def read(self) -> Tensor:
        """The forward pass alone, as far as the site."""
        return self.model.read_contexts(self.tokens, [SITE])[SITE]


def full_forward(model: LanguageModel, tokens: Tensor) -> Callable[[], Tensor]:
    """The whole model on the same tokens, as far as the logits."""

    @torch.no_grad()
    def run() -> Tensor:
        return model.model(input_ids=tokens, use_cache=False).logits

    return run


def store_rivals(
    model: Any, ours: Tensor, tokens: Tensor, promises: dict[bool, float | None]
) -> tuple[list[Rival], dict[str, str]]:
    """SAELens' store of the same rows, in float32 and in bfloat16 autocast."""
    found, missing = [], {}
    for autocast, at_least in promises.items():
        name = f"SAELens' ActivationsStore, {'bfloat16 autocast' if autocast else 'float32'}"
        try:
            store = SAELensStore(model, tokens, HOOK, WIDTH, TOKENS, autocast)
        except Absent as reason:
            missing[name] = str(reason)
            continue
        theirs = store.activations(tokens[:1])
        error = float((theirs - ours[:1].float()).abs().max() / ours.abs().max())
        assert error < (1e-5 if ours.dtype == torch.float32 and not autocast else 5e-2), error
        agreement = f"activations within {error:.0e}"
        found.append(Rival(name, store, at_least=at_least, agreement=agreement))
    return found, missing


def main() -> None:
    """Measure and report."""
    # That the store begins its tokens anew is meant.
    warnings.filterwarnings("ignore", ".*dataset.*")
    folder = Path(tempfile.mkdtemp())
    made = [folder]
    try:
        save_random_gpt2(folder)
        exact, rounded = OurHarvest(folder, "float32"), OurHarvest(folder, "bfloat16")
        made += [exact.root, rounded.root]
        full = full_forward(exact.model, exact.tokens)
        cases = []
        for name, ours, at_least, stores in (
            ("float32", exact, 2.2, {False: 2.0}),
            ("bfloat16", rounded, 5.0, {False: None, True: 2.0}),
        ):
            if ours is rounded and slow_products(torch.bfloat16) is not None:
                continue
            others, missing = store_rivals(exact.model.model, ours.read(), ours.tokens, stores)
            others.insert(0, Rival("full forward pass, float32", full, at_least=at_least))
            if ours is rounded:
                own = full_forward(ours.model, ours.tokens)
                others.insert(1, Rival("full forward pass, bfloat16", own))
            others.append(Rival("bound: forward pass to the site, nothing kept", ours.read))
            cases.append(
                Case(
                    f"{TOKENS:,} tokens in blocks of {CONTEXT}, {SITE} ({WIDTH:,} wide), {name}",
                    ours=ours,
                    rivals=others,
                    missing=missing,
                    rounds=3,
                )
            )
        report(
            "harvest",
            "Harvesting",
            cases,
            remarks=(
                "A model of GPT-2 small's shape with random weights, the same on all sides. Ours "
                "is the whole `harvest`, from packing tokens to a finished cache: the forward "
                "pass as far as the site, float16 rows shuffled, checksummed and synced to disk. "
                "The full forward pass is the same model's, to the logits, with nothing kept."
            ),
        )
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
