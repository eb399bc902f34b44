"""How figures look and how they become files: told apart without colour, and the same bytes every time.

It chooses no runs and computes nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from io import BytesIO, StringIO
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any, Final, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ddsmoothing.errors import RunError
from ddsmoothing.files import write_durably
from ddsmoothing.runs import Results
from ddsmoothing.tables.facts import units_of

P = ParamSpec("P")

KINDS: Final = ("svg", "png", "pdf")
NO_DATE: Final[dict[str, dict[str, Any]]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
# Okabe and Ito's colours, told apart by colour-blind readers; line styles and widths tell them apart in grey
COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C8C00")
STYLES: Final = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
STRONG: Final = ("#D55E00", "#000000", "#7F3C8D", "#00607A")  # data-dependent runs: solid and thick
STRONG_WIDTHS: Final = (2.6, 1.5, 2.1, 1.8)
LEGEND_WIDTH: Final = 92  # characters of two columns together
RASTER: Final = 2000  # more points than this are drawn as pixels inside the vector file
_STYLE: Final[Any] = {
    "svg.hashsalt": "ddsmoothing",
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the package's style, whatever the caller's matplotlib is set to."""

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> Figure:
        with mpl.rc_context(), mpl.rc_context(rc=_STYLE):
            return draw(*args, **options)

    return drawn


def canvas(width: float = 7.0, height: float = 4.2, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure, in inches, and its panels row by row; no window and no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def line_styles(runs: Sequence[Results]) -> list[dict[str, Any]]:
    """Keywords of ``Axes.plot`` for each run: fixed sigma broken and thin, data-dependent solid and strong."""
    strong = cycle(zip(STRONG, STRONG_WIDTHS, strict=True))
    styles = []
    for index, run in enumerate(runs):
        if run.header.sigma is None:
            colour, width = next(strong)
            styles.append({"color": colour, "ls": "-", "lw": width})
        else:
            styles.append({"color": COLOURS[index % len(COLOURS)], "ls": STYLES[index % len(STYLES)], "lw": 1.6})
    return styles


def literal(text: str, width: int | None = None) -> str:
    """Text that matplotlib shows as it is, without mathematics; of at most so many characters a line."""
    lines = text.split("\n") if width is None else [line for part in text.split("\n") for line in wrap(part, width)]
    return "\n".join(lines).replace("$", r"\$")


def legend(figure: Figure, labels: Sequence[str]) -> None:
    """Below the figure, in two columns where they fit."""
    half = -(-len(labels) // 2)
    widths = [max(map(len, part), default=0) for part in (labels[:half], labels[half:])]
    columns = 2 if sum(widths) <= LEGEND_WIDTH else 1
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, columnspacing=1.0, handletextpad=0.6)


def norm_of(runs: Sequence[Results]) -> str:
    """The one norm of the runs, ``L2`` or ``L1``; RunError where they differ."""
    norms = {run.header.norm for run in runs}
    if len(norms) != 1:
        raise RunError(f"runs of different norms {sorted(norms)} do not share an axis; plot them one norm at a time.")
    return norms.pop().upper()


def radius_axis(runs: Sequence[Results], what: str = "radius") -> str:
    """``L2 radius (pixels in [0, 1])``; RunError where norms or units differ."""
    return f"{norm_of(runs)} {what} ({one_units(runs)})"


def one_units(runs: Sequence[Results]) -> str:
    """The one unit of sigma and radii; RunError where they differ."""
    units = sorted({units_of(run) for run in runs})
    if len(units) != 1:
        raise RunError(f"runs in different units ({', '.join(units)}) do not share an axis; plot them apart.")
    return units[0]


def svg_text(figure: Figure) -> str:
    """The figure as an SVG document, the same text every time."""
    text = StringIO()
    with mpl.rc_context(rc=_STYLE):
        figure.savefig(text, format="svg", metadata=NO_DATE["svg"])
    return text.getvalue()


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write ``NAME.svg``, ``.png`` and ``.pdf``; RunError where the folder cannot be written."""
    paths = [Path(folder) / f"{name}.{kind}" for kind in KINDS]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(rc=_STYLE):
            for path, kind in zip(paths, KINDS, strict=True):
                drawn = BytesIO()
                figure.savefig(drawn, format=kind, dpi=150, metadata=NO_DATE[kind])
                write_durably(path, drawn.getvalue())
    except OSError as error:
        raise RunError(f"cannot write figures to {folder}: {error.strerror}.") from error
    return paths
