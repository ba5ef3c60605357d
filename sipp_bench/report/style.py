"""How methods look in every figure: one colour and marker a method, one line style a variant of it.

The colours are Okabe and Ito's, which stay apart for readers with any of the common colour deficiencies;
markers and line styles carry the same distinction once more, so that the figures survive a grey printer.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

METHODS = {
    # name: (colour, marker)
    "sipp-det": ("#0072B2", "o"),
    "sipp-rand": ("#D55E00", "s"),
    "sipp-hybrid": ("#009E73", "D"),
    "sipp-mixture": ("#CC79A7", "^"),
    "magnitude": ("#000000", "h"),
    "random": ("#7F7F7F", "v"),
    "snip": ("#56B4E9", "P"),
    "wanda": ("#E69F00", "p"),
}
# For methods that others register.
OTHERS = [("#332288", "<"), ("#882255", ">"), ("#117733", "8"), ("#999933", "*")]
LINES = ["-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)), (0, (3, 1.5, 1, 1.5, 1, 1.5))]
ON_S, ON_FRESH = "#0072B2", "#D55E00"
INK, FAINT = "#333333", "#c9c9c9"
DPI = 160


@dataclass(frozen=True)
class Drawn:
    """One figure in both formats: pixels for Markdown and slides, vectors for pages."""

    png: bytes
    svg: bytes


@dataclass(frozen=True)
class MethodStyle:
    colour: str
    marker: str
    line: Any
    filled: bool

    def line_kwargs(self) -> dict[str, Any]:
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "linewidth": 1.6,
            "markersize": 6,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.2,
        }


def is_sipp(method_name: str) -> bool:
    return method_name.startswith("sipp-")


def method_order(frame: pd.DataFrame) -> dict[str, int]:
    """Method label -> rank: SiPP's in the order of METHODS, then the baselines; variants as they come."""
    known = list(METHODS)
    pairs = frame[["method_name", "method"]].drop_duplicates().itertuples(index=False)
    names = {str(label): str(name) for name, label in pairs}

    def rank(label: str) -> tuple[int, str]:
        name = names[label]
        return (known.index(name) if name in METHODS else len(known), name)

    return {label: position for position, label in enumerate(sorted(names, key=rank))}


def method_styles(frame: pd.DataFrame) -> dict[str, MethodStyle]:
    """Method label -> its style, in the report's order. The same options give the same line style."""
    names = dict(zip(frame["method"].astype(str), frame["method_name"].astype(str), strict=True))
    unknown = sorted({name for name in names.values() if name not in METHODS})
    looks = METHODS | {name: OTHERS[position % len(OTHERS)] for position, name in enumerate(unknown)}
    labels = list(method_order(frame))
    styles = {}
    for sipp in (True, False):
        group = [label for label in labels if is_sipp(names[label]) is sipp]
        # The options are what a label says beyond the method's name; one without variants is a solid line.
        several = {names[label] for label in group if [names[other] for other in group].count(names[label]) > 1}
        options = {label: label.removeprefix(names[label]) for label in group if names[label] in several}
        ranks = {option: rank for rank, option in enumerate(dict.fromkeys(options.values()))}
        for label in group:
            rank = ranks[options[label]] if label in options else 0
            styles[label] = MethodStyle(*looks[names[label]], LINES[rank % len(LINES)], filled=rank % 2 == 0)
    return {label: styles[label] for label in labels}


def log_ticks(axes: Axes, which: Literal["x", "y"], values: Iterable[float], unit: str = "") -> None:
    """A logarithmic axis around the values with plain labels: 1, 2, 5, 10 or, if wide, powers of ten."""
    finite = [float(value) for value in values if 0 < value < np.inf] or [1.0]
    # With 2 % to spare: a ratio of 100.2 needs no tick at 1000.
    powers = np.arange(np.floor(np.log10(min(finite) * 1.02)), np.ceil(np.log10(max(finite) / 1.02)) + 1)
    steps = np.outer(10.0**powers, (1, 2, 5)).ravel() if len(powers) <= 3 else 10.0**powers
    # Out to a step on either side, so that a narrow range has ticks too.
    below, above = steps[steps <= min(finite) * 1.02], steps[steps >= max(finite) / 1.02]
    ends = (below[-1] / 1.1, above[0] * 1.1)
    axes.set(**{f"{which}scale": "log", f"{which}lim": ends})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator([step for step in steps if ends[0] <= step <= ends[1]]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))


@contextmanager
def figure_style() -> Iterator[None]:
    """Everything the figures share; names of methods and layers are text, never mathematics."""
    look = sns.axes_style("whitegrid") | sns.plotting_context("notebook", font_scale=0.85)
    with mpl.rc_context(
        look
        | {
            "text.parse_math": False,
            "svg.hashsalt": "sipp-bench",
            "axes.edgecolor": "#888888",
            "axes.titleweight": "bold",
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "grid.color": "#e4e4e4",
            "font.family": "DejaVu Sans",
            "legend.frameon": False,
        }
    ):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, outside pyplot's global state."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def drawn(figure: Figure) -> Drawn:
    """The figure as PNG and as SVG. The same data give the same bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    return Drawn(png(figure), buffer.getvalue())


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes in 256 colours, a third of the size. The same data give the same bytes."""
    pixels, buffer = BytesIO(), BytesIO()
    figure.savefig(pixels, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})
    image = Image.open(pixels).convert("RGB").quantize(256)
    image.save(buffer, format="PNG", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()
