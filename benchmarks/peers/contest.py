"""List of peers, and their steps as rivals of ours."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from harness import Rival
from peers.absent import Absent
from peers.dictionary_learning import DictionaryLearningStep
from peers.overcomplete import OvercompleteStep
from peers.saelens import SAELensStep
from peers.setting import Setting
from peers.sparsify import SparsifyStep

PEERS: Mapping[str, Callable[[Setting], Any]] = {
    "SAELens": SAELensStep,
    "SAELens, given fused Adam": partial(SAELensStep, fused=True),
    "dictionary_learning": DictionaryLearningStep,
    "overcomplete": OvercompleteStep,
    "sparsify": SparsifyStep,
}


def rivals(
    setting: Setting, ours: Tensor, promises: Mapping[str, float | None]
) -> tuple[list[Rival], dict[str, str]]:
    """Steps of the installed peers, and the reasons that others are missing.

    Args:
        setting: What all sides begin with.
        ours: Our reconstruction of the batch before the first step.
        promises: The peers to ask, and how many times as long as ours they have to take.

    Raises:
        AssertionError: If a peer's reconstruction with the same weights is another one.
    """
    found, missing = [], {}
    for name, at_least in promises.items():
        try:
            step = PEERS[name](setting)
        except Absent as reason:
            missing[name] = str(reason)
            continue
        error = float((step.reconstruction() - ours).abs().max() / ours.abs().max())
        assert error < 1e-5, f"{name}: reconstructions with the same weights differ by {error:.1e}"
        agreement = f"first reconstructions within {error:.0e}"
        found.append(Rival(name, step, at_least=at_least, agreement=agreement))
    return found, missing
