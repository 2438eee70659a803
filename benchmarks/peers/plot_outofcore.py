"""Draws the out-of-core benchmark: `python plot_outofcore.py ORDER.json STEM` writes STEM.svg and STEM.png.

A panel for each model: seconds of a token against the memory budget, a line for each engine, the bounds dashed.
Needs matplotlib, which is why it runs in an environment of the peers'.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

_PANEL_INCHES = (6.4, 4.8)
_DOTS_PER_INCH = 144
_COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d5a97", "#e08e45", "#4a4e69", "#00a6a6", "#8a817c")
_MARKERS = "osD^vP*X"
_GREYS = ("#222222", "#666666", "#999999", "#bbbbbb", "#cccccc")

__all__ = ["main"]


def main():
    """Draw both files."""
    models = json.loads(Path(sys.argv[1]).read_text("utf-8"))["models"]
    engines = list(dict.fromkeys(name for model in models for name in model["engines"]))
    figure, panels = plt.subplots(
        1, max(1, len(models)), figsize=(_PANEL_INCHES[0] * max(1, len(models)), _PANEL_INCHES[1]), squeeze=False
    )
    for panel, model in zip(panels[0], models, strict=False):
        _draw(panel, model, engines)
    for suffix in ("svg", "png"):
        figure.savefig(f"{sys.argv[2]}.{suffix}", dpi=_DOTS_PER_INCH, bbox_inches="tight")


def _draw(panel, model, engines):
    for name, points in model["engines"].items():
        place = engines.index(name)
        style = {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}
        panel.plot(*_columns(points), label=name, linewidth=1.6, **style)
    for grey, (name, points) in zip(_GREYS, model["bounds"].items(), strict=False):
        marker = {"marker": "_", "markersize": 24} if len(points) == 1 else {}
        panel.plot(*_columns(points), label=f"bound: {name}", color=grey, linestyle="--", linewidth=1.2, **marker)
    panel.set_yscale("log")
    panel.set_title(model["model"])
    panel.set_xlabel("memory budget, GB")
    panel.set_ylabel("seconds per token")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(visible=True, which="both", linewidth=0.4, color="#dddddd")
    panel.legend(fontsize="small", frameon=False, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _columns(points):
    return [budget / 1e9 for budget, _ in points], [seconds for _, seconds in points]


if __name__ == "__main__":
    main()
