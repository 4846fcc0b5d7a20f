"""Pairs of prompts, with their answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from palinka.errors import InputError

Direction = Literal["denoise", "noise"]
Base = Literal["clean", "corrupted"]
# The run that is changed.
BASES: Mapping[Direction, Base] = {"denoise": "corrupted", "noise": "clean"}


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts that differ in the words that decide the answer.

    Every attribute has one entry for each of the `n` pairs. The outcome is measured at the last
    token of a prompt, which predicts the answer.

    Attributes:
        clean: Token ids of the clean prompts, `(tokens,)` each.
        corrupted: Token ids of the corrupted prompts, as many as the clean one has; with `noise`,
            those of the clean prompts; empty for mere texts, which have no answers either.
        answers: Ids of the tokens that rightly follow the clean prompt, one or more.
        wrong: Ids of the tokens that follow the corrupted prompt.
        templates: Name of the template of each pair: the unit of inference.
        roles: By name of a role, its position in each prompt; `end` is the last token.
        noise: Where noise on the embeddings takes the place of corrupted prompts, the positions
            that get it, one or more in each prompt.
        sigma: Standard deviation of the noise, in units of that of all elements of the embeddings
            at `noise`.
    """

    clean: Sequence[Sequence[int]]
    corrupted: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    wrong: Sequence[Sequence[int]]
    templates: Sequence[Any]
    roles: Mapping[str, Sequence[int]] = field(default_factory=dict)
    noise: Sequence[Sequence[int]] = ()
    sigma: float = 0.0

    def __len__(self) -> int:
        return len(self.clean)

    def of(self, rows: Iterable[int]) -> "Pairs":
        """The pairs of these numbers, also repeated."""
        rows = [*rows]
        chosen: dict[str, Any] = {
            name: [values[i] for i in rows]
            for name, values in vars(self).items()
            if name not in ("roles", "sigma") and len(values)
        }
        chosen["roles"] = {role: [at[i] for i in rows] for role, at in self.roles.items()}
        return replace(self, **chosen)

    def __repr__(self) -> str:
        return f"Pairs({len(self)} of {len(set(self.templates))} templates)"

    def check_texts(self) -> None:
        """Raise an `InputError` if noise takes the place of corrupted texts."""
        if self.noise:
            fault = "corrupted: {noise: …} is for activation_patching, ablation and lesion"
            raise InputError(f"{fault}; give a corrupted text")
