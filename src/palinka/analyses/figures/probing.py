"""Figure of k-sparse probes."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from palinka.analyses.figures import style
from palinka.analyses.result import Array


@style.captioned(
    probing="The area under the ROC curve of probes on few latents against their number, with 95 % "
    "intervals over tasks or items. Dashed are baselines with as many columns, dotted those that "
    "have no number of columns. In the gray band are probes of shuffled labels.",
)
def probing(
    ks: Sequence[int], dictionaries: Mapping[str, Array], baselines: Mapping[str, Sequence[float]],
    band: tuple[Array, Array] | None = None, **context: Any,
) -> dict[str, Figure]:  # fmt: skip
    """Draw `probing`, the AUC against the number of latents.

    `dictionaries` have by name the AUC and the bounds of its interval, `(3, ks)`, `baselines` the
    AUC, of which a single one is drawn across. The context may have a `title`.
    """
    figure, axes = style.new_figure(style.WIDTH, 3.6)
    if band is not None:
        axes.fill_between(ks, *band, color=style.MUTED, alpha=0.35, lw=0, label="shuffled labels")
    style.mark(axes, y=0.5)
    for index, (name, (auc, low, high)) in enumerate(dictionaries.items()):
        look = style.look(index)
        axes.plot(ks, auc, label=name, **look)
        axes.fill_between(ks, low, high, color=look["color"], alpha=0.2, lw=0)
    for index, (name, values) in enumerate(baselines.items(), start=len(dictionaries)):
        look = {"ls": "--", "lw": 0.9, **style.look(index), "ms": 2.5}
        if len(values) < len(ks):
            values = [values[0]] * len(ks)
            look |= {"ls": ":", "marker": ""}
        axes.plot(ks, values, label=name.replace("_", " "), **look)
    axes.set_xscale("log")
    axes.set_xticks(ks, [f"{k}" for k in ks])
    axes.minorticks_off()
    axes.set(xlabel="latents or other columns in the probe (k)", ylabel="AUC, mean over tasks")
    axes.set_title(context.get("title", "Probes on few latents"))
    figure.legend(loc="outside lower center", ncols=2, fontsize="medium")
    return {"probing": figure}
