"""Box plots and training curves as SVG, drawn once and coloured twice, for light and for dark pages."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2329", "#5f6b76", "#dfe4e8"
# Okabe and Ito's colours, told apart with any form of colour blindness; the order keeps neighbours distant
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c")
# what stands for a colour on a dark page, where it has to be lighter
DARK = {INK: "#e8ebee", MUTED: "#a2adb7", GRID: "#343b42", "#0072b2": "#4ba6e0", "#009e73": "#2fc397"}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "heatproof",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
_MANY = 150  # scores in a box, beyond which only outliers are drawn as points
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True)
class Picture:
    """One drawing as two SVG texts; `width` and `height` in CSS pixels."""

    light: str
    dark: str
    width: int
    height: int


def box_plots(
    scores: pd.DataFrame, methods: Sequence[str], classes: Sequence[str], *, limits: tuple[float, float] | None = None
) -> Picture:
    """Scores of one model and metric: a group of boxes a method, in it a box a class, scores as points.

    Boxes are quartiles with the median, whiskers reach to the last score within 1.5 interquartile ranges. A box of more
    than 150 scores shows only those beyond its whiskers as points. Where a method's
    scores are all 0 or 1, the box is the share of ones. Undefined scores are left out.

    Args:
        scores: columns method, label (the true class), value.
        methods: the groups, from top to bottom.
        classes: the boxes of a group, from top to bottom.
        limits: of the axis, where several plots shall share it.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        step = max(0.8, 0.24 * len(classes) + 0.2)
        figure, axes = _figure(5.4, 0.75 + 0.42 * step * len(methods))
        for m, method in enumerate(methods):
            rows = scores[scores["method"] == method]
            binary = bool(rows["value"].dropna().isin([0.0, 1.0]).all())
            for c, (name, colour) in enumerate(zip(classes, class_colours(len(classes)), strict=True)):
                values = rows.loc[rows["label"] == name, "value"].to_numpy(dtype=np.float64)
                centre = m * step + (c - (len(classes) - 1) / 2) * 0.24
                _draw(axes, values[np.isfinite(values)], centre, colour, binary)
            if not rows["value"].notna().any():
                axes.text(0.02, m * step, "no scores", color=MUTED, va="center", transform=axes.get_yaxis_transform())
        axes.set_yticks([m * step for m in range(len(methods))], list(methods))
        axes.set_ylim((len(methods) - 0.5) * step, -0.5 * step)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        if limits is not None:
            axes.set_xlim(*limits)
        return _picture(figure)


def class_colours(classes: int) -> list[str]:
    """A colour for each class, on a light page; beyond seven they repeat, and the order in a group tells them apart."""
    return [PALETTE[c % len(PALETTE)] for c in range(classes)]


def shared_limits(values: "pd.Series[float]") -> tuple[float, float] | None:
    """Axis limits that hold all finite values with a margin; None where there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def training_curves(history: pd.DataFrame) -> Picture:
    """Losses, and beside them every other measure, over the epochs.

    A dashed line at the epoch with the lowest validation loss, whose weights `training.fit` keeps.
    """
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    panels = _panels(history)
    kept = history["epoch"].iloc[int(history["val_loss"].to_numpy().argmin())]
    with rc_context(_STYLE):
        figure, axes = _figure(2.9 * len(panels), 2.1, len(panels))
        for axis, (title, columns) in zip(np.atleast_1d(axes), panels.items(), strict=True):
            for colour, (column, name) in zip(PALETTE, columns.items(), strict=False):
                marker = "o" if len(history) < 3 else None
                axis.plot(history["epoch"], history[column], color=colour, linewidth=1.6, marker=marker, label=name)
            axis.axvline(kept, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
            axis.set_title(title, loc="left", fontsize=9)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
            axis.legend(loc="best", fontsize=8)
        return _picture(figure)


def reliability(bins: Sequence[Mapping[str, float]]) -> Picture:
    """How often predictions are right, by how sure the model is; below, how many there are.

    On the dashed line, confidence and accuracy agree.

    Args:
        bins: low, high, n, confidence (mean) and accuracy of each, as `training.performance` gives them; empty bins are
            left out.
    """
    from matplotlib import rc_context

    filled = [found for found in bins if found["n"]]
    with rc_context(_STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.4, 3.9), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        confidence, right = ([found[name] for found in filled] for name in ("confidence", "accuracy"))
        upper.plot(confidence, right, color=PALETTE[0], linewidth=1.6, marker="o", markersize=4)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
        edges, widths = [b["low"] for b in filled], [b["high"] - b["low"] for b in filled]
        lower.bar(edges, [b["n"] for b in filled], widths, align="edge", color=f"{PALETTE[0]}66")
        lower.set(xlabel="confidence", ylabel="number")
        return _picture(figure)


def _panels(history: pd.DataFrame) -> Mapping[str, Mapping[str, str]]:
    """Each panel's title -> {column: its name in the legend}."""
    measured = [c for c in history.columns if c not in ("epoch", "lr", "seconds") and history[c].notna().any()]
    losses = {c: c.replace("_loss", "").replace("_", " ") for c in measured if "loss" in c}
    others = {c: c.replace("_", " ") for c in measured if c not in losses}
    return {title: columns for title, columns in {"Loss": losses, "Validation": others}.items() if columns}


def _figure(width: float, height: float, panels: int = 1) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels)


def _draw(axes: "Axes", values: np.ndarray[Any, Any], centre: float, colour: str, binary: bool) -> None:
    if not len(values):
        return
    if binary:
        axes.barh(centre, values.mean(), height=0.17, facecolor=f"{colour}26", edgecolor=colour, linewidth=1.1)
    else:
        _box(axes, values, centre, colour)
    if len(values) > _MANY:  # then the points that say something are those that the box does not hold
        low, high = np.quantile(values, [0.25, 0.75])
        reach = 1.5 * (high - low)
        values = values[(values < low - reach) | (values > high + reach)] if not binary else values[:0]
    # the golden ratio spreads points evenly, and the same way each time
    jitter = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.14
    axes.plot(values, centre + jitter, linestyle="none", marker="o", markersize=3.2, color=colour, alpha=0.5, mew=0)


def _box(axes: "Axes", values: np.ndarray[Any, Any], centre: float, colour: str) -> None:
    line = {"color": colour, "linewidth": 1.1}
    axes.boxplot(
        values,
        positions=[centre],
        orientation="horizontal",
        widths=0.17,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": f"{colour}26", "edgecolor": colour, "linewidth": 1.1},
        medianprops={"color": colour, "linewidth": 2.2},
        whiskerprops=line,
        capprops={"linewidth": 0},
    )


def _picture(figure: "Figure") -> Picture:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    light = file.getvalue().replace("'DejaVu Sans', sans-serif", _FONTS).replace("DejaVu Sans", _FONTS)
    dark = light
    for ink, other in DARK.items():
        dark = dark.replace(ink, other)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Picture(light, dark, width, height)
