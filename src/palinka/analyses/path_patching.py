"""Effects of what one component writes on a receiver alone."""

from typing import Any, Unpack

from numpy.typing import ArrayLike

from palinka.analyses.result import takes
from palinka.analyses.stats.effects import (
    Cells,
    Direction,
    EffectArguments,
    Effects,
    measure_effects,
)


class PathPatching(Effects):
    """Effects of paths; cells are the pairs of a sender and a receiver."""

    def label(self, cell: dict[str, Any]) -> str:
        """The sender, an arrow and the receiver."""
        sender = {axis: x for axis, x in cell.items() if axis != "receiver"}
        return f"{super().label(sender)} → {super().label({'receiver': cell['receiver']})}"


@takes("effects of paths")
def path_patching(
    patched: Cells, clean: ArrayLike, corrupted: ArrayLike, *, direction: Direction = "denoise",
    **options: Unpack[EffectArguments],
) -> PathPatching:  # fmt: skip
    """Measure the effect of each path from a sender to a receiver.

    Only the receiver reads what the sender writes in the other run
    (`interventions.paths.path_outcomes`). Effects, tests and intervals are those of
    `activation_patching`; effects of paths do not add up.

    Args:
        patched: Outcomes with a path patched, `(senders, receivers, prompts)`, or a mapping of
            kinds of senders to such arrays, also of cells with other axes.
        clean: Outcomes of the clean runs, `(prompts,)`.
        corrupted: Outcomes of the corrupted runs, `(prompts,)`.
        direction: `"denoise"` or `"noise"`.
        **options: Those of `activation_patching`.

    Source:
        Wang et al. (2022), appendix B; Goldowsky-Dill et al. (2023).
    """
    names, given = ("sender", "receiver"), (patched, clean, corrupted)
    return PathPatching(**measure_effects(*given, direction=direction, names=names, **options))
