"""How the plots of a report are drawn: their style, their legends, the names on them, their SVG."""

from __future__ import annotations

import functools
import io
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fedcore.errors import DependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Plot = tuple[str, str]

#: points of the letters in a legend
_LETTERS = 9
#: columns that a name takes at most, wide letters two
_LONGEST = 32
#: what XML cannot hold, or what would break a line, and what is shown in its place
_CONTROLS = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421, 0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedcore",
    # names are the user's: a dollar in them begins no formula
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def styled(plot: Callable[..., Plot]) -> Callable[..., Plot]:
    """Draw in the page's style, apart from the process's own. Raises DependencyError without matplotlib."""

    @functools.wraps(plot)
    def drawn(*arguments: Any) -> Plot:
        try:
            import matplotlib
        except ImportError:
            raise DependencyError(
                "the report's plots need matplotlib; install fedcore[train]", name="matplotlib"
            ) from None
        with matplotlib.rc_context(STYLE):
            return plot(*arguments)

    return drawn


def figure_of(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many inches that belongs to nobody's pyplot, and its axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(rows, columns, **options)


def legible(name: str) -> str:
    """A name that users choose freely, as one line of a plot: control characters as their pictures, cut where long."""
    shown = name.translate(_CONTROLS)
    if len(shown) + _wide(shown) <= _LONGEST:
        return shown
    while len(shown) + _wide(shown) >= _LONGEST:
        shown = shown[:-1]
    return shown + "…"


def legend(axes: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    """The legend beside the axes, where it hides nothing."""
    places = [str(index) for index in range(len(names))]
    box = axes.legend(
        handles, places, fontsize=_LETTERS, loc="upper left", bbox_to_anchor=(1.0, 1.02), borderaxespad=0.3
    )
    # not given to legend(), which in some releases of matplotlib leaves out names that begin with "_"
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set_text(name)
    # a letter that matplotlib's font lacks is measured as 0.6 of an em; where it is wide, a browser draws it as one
    more = 0.4 * _LETTERS / 72 * max(map(_wide, names), default=0)
    axes.figure.get_layout_engine().set(rect=(0, 0, 1 - more / axes.figure.get_figwidth(), 1))


def svg(figure: Figure) -> str:
    """The figure as an <svg> element, without XML prologue and date, so that the same run gives the same text."""
    written = io.StringIO()
    with warnings.catch_warnings():
        # text stays text, which whoever opens it draws in fonts of their own
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _wide(name: str) -> int:
    """How many of its letters are two columns wide, as those of Chinese, Japanese and Korean are."""
    return sum(unicodedata.east_asian_width(letter) in "WF" for letter in name)
