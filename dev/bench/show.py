"""The results as tables, and the plot of cost against the number of datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.results import Figure, Results

_CONTESTANTS = ("loop", "kopiatomic", "bare")


def table(found: Sequence[Results]) -> None:
    """Print them."""
    from rich.console import Console  # noqa: PLC0415 - the VM has none of these libraries, and shows nothing
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    for results in found:
        times = Table("what", "datasets", "median s", "least", "most", title=f"{results.part} ({results.machine})")
        for one in results.times:
            what = f"{one.what} ({one.note})" if one.note else one.what
            spread = (median(one.seconds), min(one.seconds), max(one.seconds))
            times.add_row(what, str(one.datasets or ""), *(f"{seconds:.3f}" for seconds in spread))
        console.print(times)
        figures = Table("figure", "median", "least", "most", "goal", "")
        for figure in results.figures:
            figures.add_row(figure.name, *_cells(figure))
        console.print(figures)
        for figure in results.figures:
            if figure.note:
                console.print(f"{figure.name}: {figure.note}", markup=False)


def _cells(figure: Figure) -> list[str]:
    values = [f"{value:.4g} {figure.unit}".strip() for value in (figure.value, figure.low, figure.high)]
    goal = "" if figure.goal is None else f"{figure.compare} {figure.goal:g}"
    return [*values, goal, {True: "reached", False: "NOT REACHED", None: ""}[figure.reached]]


def plot(found: Sequence[Results], file: Path) -> None:
    """Write an SVG, a line for each contestant on each filesystem; both axes are logarithmic."""
    import pygal  # noqa: PLC0415
    from pygal.style import CleanStyle  # noqa: PLC0415

    chart = pygal.XY(
        logarithmic=True,
        title="Freeze, mount, clear up: cost by number of datasets",
        x_title="datasets",
        y_title="seconds (median)",
        style=CleanStyle,
        js=[],
        width=900,
        height=500,
        legend_at_bottom=True,
    )
    for results in found:
        for who in _CONTESTANTS:
            points = {t.datasets: median(t.seconds) for t in results.times if t.what == who and len(t.seconds) > 1}
            if points:
                chart.add(f"{results.part}: {who}", sorted(points.items()))
    chart.render_to_file(str(file))
