"""The report's plots: matplotlib figures as SVG that stands in the page, readable on a light and on a dark ground."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#7a8296"  # in between, since the ground may be white or nearly black
COLOURS = ("#2f7de1", "#f07818", "#2ca58d", "#b05bd6")
STYLE = {
    "svg.hashsalt": "lavit",  # the same figures give the same bytes
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.2,
    "legend.frameon": False,
}


def curves(series: dict[str, tuple[Sequence[float], Sequence[float]]], label: str, marks: dict[str, float]) -> str:
    """Lines by name, (x, y) each, over training steps; ``marks`` are named upright lines."""

    def draw(axes: Axes) -> None:
        for colour, (name, (x, y)) in zip(cycle(COLOURS), series.items(), strict=False):
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=1)
            axes.plot(x, running_mean(y), color=colour, linewidth=1.8, label=name)
        for name, x in marks.items():
            axes.axvline(x, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(name, (x, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                          va="top", fontsize=9)  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if len(series) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(series))

    return _svg(draw)


LINES = {"chosen": "-", "even": "--", "random": ":"}


def length_plot(curves: dict[str, dict[str, Sequence[float]]], own: tuple[float, float] | None = None) -> str:
    """Mean cosine by token count for each way of choosing patches, a colour a tokenizer by its name.

    ``curves``: of :func:`tokenizer.curves.length_curve`; ``own``: tokens and cosine where a tokenizer chose the count.
    """

    def draw(axes: Axes) -> None:
        for colour, (name, curve) in zip(cycle(COLOURS), curves.items(), strict=False):
            for policy, line in LINES.items():
                label = f"{name} {policy}".strip()
                axes.plot(curve["tokens"], curve[policy], line, color=colour, linewidth=1.8, label=label)
        if own is not None:
            axes.plot(*own, "o", color=COLOURS[1], label="own count", zorder=3)
        axes.set_xlabel("tokens an image")
        axes.set_ylabel("cosine")
        axes.legend(loc="lower right")

    return _svg(draw)


def token_histogram(histogram: Sequence[int], mean: float) -> str:
    """Pictures by their number of tokens: ``histogram[n]`` pictures have n."""

    def draw(axes: Axes) -> None:
        axes.bar(range(len(histogram)), histogram, width=0.85, color=COLOURS[0])
        axes.axvline(mean, color=COLOURS[1], linewidth=1.8, label=f"mean {mean:.1f}")
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens an image")
        axes.set_ylabel("pictures")
        axes.grid(False, axis="x")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")

    return _svg(draw)


def code_usage_plot(counts: np.ndarray, perplexity: float) -> str:
    """How often each code is used, most frequent first: counts (K,) int."""

    def draw(axes: Axes) -> None:
        ordered = np.sort(counts)[::-1]
        used = int((ordered > 0).sum())
        axes.fill_between(np.arange(1, used + 1), ordered[:used], step="mid", color=COLOURS[0], alpha=0.35, linewidth=0)
        axes.step(np.arange(1, used + 1), ordered[:used], where="mid", color=COLOURS[0], linewidth=1.6)
        axes.axvline(perplexity, color=COLOURS[1], linewidth=1.8, label=f"perplexity {perplexity:.0f}")
        axes.set_yscale("log")
        axes.set_xlim(0, len(counts))
        axes.set_xlabel(f"codes by rank, of {len(counts):,}")
        axes.set_ylabel("times used")
        axes.legend(loc="upper right")

    return _svg(draw)


def place_map(rates: np.ndarray) -> str:
    """How often the patch at each place is kept: (G, G) in [0, 1]."""

    def draw(axes: Axes) -> None:
        image = axes.imshow(rates, cmap="YlOrBr", vmin=0, vmax=max(1e-6, float(rates.max())))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.85)
        bar.outline.set_visible(False)
        bar.set_label("kept in this share")

    return _svg(draw)


def running_mean(values: Sequence[float], share: float = 0.06) -> np.ndarray:
    """Each value's mean with its neighbours, ``share`` of all of them wide, fewer at the ends."""
    reach = int(len(values) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _svg(draw) -> str:
    """One plot as a data URI; its texts are paths, so that it looks the same everywhere."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.8), layout="constrained")
        draw(figure.add_subplot())
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
