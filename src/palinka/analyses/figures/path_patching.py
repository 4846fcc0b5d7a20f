"""Figure of path patching."""

from typing import Any

from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.figures.activation_patching import draw_maps, outcome_label, runs
from palinka.analyses.path_patching import PathPatching

THROUGH = {"stream": "directly", "mlps": "directly or through MLPs"}


@style.captioned(
    map="The mean effect of what each sender writes on the receiver alone, at one color scale. "
    "Outlined paths are significant after correction for all of them."
)
def path_patching(result: PathPatching, **context: Any) -> dict[str, Figure]:
    """Draw `map`, senders by receivers, with a panel of heads for each receiver."""
    how = THROUGH.get(context.get("through", ""), "alone")
    what = "{} writes that receivers in {} prompts read {}".format(*runs(result), how)
    label = f"effect on the {outcome_label(result)}"
    return {"map": draw_maps(result, {"": result.effect}, label, what)}
