"""The report's pictures, as PNG bytes: matplotlib without pyplot, so on the Agg backend and without global state.

Every picture is drawn dark on white; a page in dark mode inverts it. Colours are those of Okabe and Ito, which
people with a colour deficiency tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from smolcls.errors import require
from smolcls.evaluation.run import Evaluation
from smolcls.metrics import reliability
from smolcls.report.content import curve

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8A8A8A"
_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_NUMBERED = 12  # labels up to which a confusion matrix has its counts and names written in
_DPI = 160


def check_installed() -> Any:
    """matplotlib; raises `MissingExtraError` where it is not installed."""
    return require("matplotlib", extra="evaluate", purpose="Drawing a report")


def confusion(evaluation: Evaluation) -> bytes:
    """The confusion matrix: shaded by the share of the true label's rows, the counts written in."""
    counts = evaluation.metrics.confusion
    shares = [[count / max(1, sum(line)) for count in line] for line in counts]
    names, few = evaluation.labels, len(counts) <= _NUMBERED
    size = min(7.0, max(4.2, 1.8 + 0.62 * len(counts)))
    with _drawing(size, size * 0.92) as (axes, png):
        axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.set(xlabel="answer", ylabel="true label")
        axes.grid(False)
        if few:
            places = range(len(names))
            shown = [_short(name) for name in names]
            slant = {"rotation": 35, "ha": "right"} if max(map(len, shown)) * len(shown) > 36 else {}
            axes.set_xticks(places, labels=shown, parse_math=False, **slant)
            axes.set_yticks(places, labels=shown, parse_math=False)
            for line, column in ((line, column) for line in places for column in places):
                ink = "white" if shares[line][column] > 0.55 else "black"
                axes.text(column, line, str(counts[line][column]), ha="center", va="center", color=ink)
    return png.getvalue()


def calibration(evaluation: Evaluation) -> bytes:
    """The reliability diagram, before and after calibration: accuracy of bins of equal mass over their confidence."""
    with _drawing(4.2, 3.9) as (axes, png):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="as it should be")
        before, after = evaluation.metrics_before, evaluation.metrics
        if before is not None and evaluation.uncalibrated is not None:
            _reliability(
                axes, evaluation.uncalibrated, evaluation.truth, ORANGE, "s--", f"before, ECE {before.ece:.3f}"
            )
        name = "after" if before is not None else "as answered"
        _reliability(axes, evaluation.probabilities, evaluation.truth, BLUE, "o-", f"{name}, ECE {after.ece:.3f}")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy", aspect="equal")
        axes.legend(loc="upper left")
    return png.getvalue()


def histogram(evaluation: Evaluation) -> bytes:
    """How many right and wrong answers there are at each confidence, on a scale where few are seen beside many."""
    groups = [
        [answer.confidence for answer in evaluation.answers if answer.right],
        [answer.confidence for answer in evaluation.answers if not answer.right],
    ]
    with _drawing(4.2, 3.9) as (axes, png):
        names = [f"right ({len(groups[0])})", f"wrong ({len(groups[1])})"]
        # Side by side: on a logarithmic scale a stack's upper part looks too thin.
        axes.hist(groups, bins=[i / 20 for i in range(21)], color=[BLUE, ORANGE], label=names)
        axes.set_yscale("symlog", linthresh=1.0)
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.set(xlim=(0, 1), xlabel="confidence", ylabel="rows")
        axes.legend(loc="upper left")
    return png.getvalue()


def coverage(evaluations: Sequence[Evaluation]) -> bytes:
    """Accuracy of what is answered over the share that is, a line for each classifier."""
    with _drawing(7.0, 4.0) as (axes, png):
        lowest = 1.0
        for place, evaluation in enumerate(evaluations):
            points = curve(evaluation)
            lowest = min([lowest, *(point.accuracy for point in points if point.coverage >= 0.05)])
            axes.plot(
                [point.coverage for point in points],
                [point.accuracy for point in points],
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_STYLES[place % len(_STYLES)],
                marker="o" if len(points) < 20 else None,
                markersize=3.5,
                label=_legend(f"{evaluation.name}, {evaluation.metrics.accuracy:.1%} of all"),
            )
        axes.set(xlim=(0, 1.01), ylim=(max(0.0, lowest - 0.03), 1.005))
        axes.set(xlabel="share of the rows that is answered", ylabel="accuracy of the answers")
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.yaxis.get_major_locator().set_params(steps=[1, 2, 5, 10], min_n_ticks=3)  # whole per cents
        legend = axes.legend(loc="lower left")
        for entry in legend.get_texts():
            entry.set_parse_math(False)
    return png.getvalue()


def _reliability(
    axes: Any, spreads: Sequence[Sequence[float]], truth: Sequence[int], colour: str, style: str, name: str
) -> None:
    bins = reliability(spreads, truth)
    axes.plot(
        [item.confidence for item in bins],
        [item.accuracy for item in bins],
        style,
        color=colour,
        markersize=4,
        label=name,
    )


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """Axes to draw on; at the end their figure is written as PNG."""
    matplotlib = check_installed()
    from matplotlib.figure import Figure

    png = io.BytesIO()
    # The defaults, not the user's own settings: a report looks alike on every machine.
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), png
        figure.savefig(png, format="png")


_STYLE = {
    "figure.dpi": _DPI,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "#E4E4E4",
    "legend.fontsize": 9,
}


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _legend(name: str) -> str:
    # matplotlib leaves out of a legend what begins with an underscore.
    return f" {name}" if name.startswith("_") else name
