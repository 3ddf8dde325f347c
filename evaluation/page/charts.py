"""The charts of quality against evaluations and against seconds, one pair for each metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from scorefield.evaluation.comparison.recommend import bounded, evaluations, told, words
from scorefield.evaluation.page import svg
from scorefield.numerics.text import short_number as short

if TYPE_CHECKING:
    from scorefield.evaluation.comparison.compare import Comparison, Row

TEXT = ("Bars are 95 % intervals over the {counted}. Marks of different samplers at one number of evaluations stand a "
        "little apart, so that none hides another. Seconds were measured side by side in this comparison.")
ERROR = "error"
ERROR_TITLE = "Distance to the exact flow"


@dataclass(frozen=True)
class Chart:
    """The two charts of one metric, or of the error: its word, its title, and SVGs by file name."""

    word: str
    title: str
    files: dict[str, str]
    better: str


def pair_key(c: Comparison, row: Row) -> str:
    return f"{c.names.index(row.name)}-{row.budget or 'own'}"


def of(c: Comparison) -> list[Chart]:
    """A chart pair for each metric that has numbers, and one for the error if a sampler is deterministic."""
    made = []
    for metric in c.metrics:
        known = [row for row in c.rows if metric in row.figures and math.isfinite(row.figures[metric].value)]
        if known:
            floor = known[0].figures[metric].floor
            title = words(metric).removeprefix("the ")
            made.append(_charts(c, known, metric, title[:1].upper() + title[1:], floor, known[0].figures[metric].better))
    exact = [row for row in c.rows if row.error is not None and math.isfinite(row.error) and row.error > 0]
    if exact:
        made.append(_charts(c, exact, ERROR, ERROR_TITLE, exact[0].accuracy or None, "lower"))
    return made


def _charts(c: Comparison, rows: Sequence[Row], word: str, title: str, floor: float | None, better: str) -> Chart:
    floor_text = "" if floor is None else "accuracy of the exact flow" if word == ERROR else _floor_text(rows[0], word)
    if word == ERROR and floor is not None and floor < min(row.error or math.inf for row in rows) / 30:
        floor, floor_text = None, ""      # far below all errors: of no interest, and would flatten the chart
    files = {}
    for over, xlabel in (("evaluations", "evaluations of the network (log scale)"),
                         ("seconds", f"milliseconds for {c.words.unit} (log scale)")):
        series = [svg.Series(name, number, points) for number, name in enumerate(c.names)
                  if (points := [_point(c, row, word, over) for row in rows if row.name == name])]
        files[f"{word}_over_{over}"] = svg.line_chart(
            series, f"{title} over {over}", xlabel, f"{title}, {better} is better", True, floor, floor_text)
    return Chart(word, title, files, better)


def _floor_text(row: Row, metric: str) -> str:
    """What the floor is of, and that the marks are of another number where that matters."""
    figure = row.figures[metric]
    other = f" (marks: {figure.samples:,} samples)" if metric in row.matched else ""
    return f"floor: {figure.floor_samples:,} held-out examples{other}"


def _point(c: Comparison, row: Row, word: str, over: str) -> svg.Point:
    x = row.nfe if over == "evaluations" else max(row.seconds * 1e3, 1e-6)
    cost = f"{row.name}, {evaluations(row.nfe)}, {short(row.seconds * 1e3)} ms"
    if word == ERROR:
        assert row.error is not None
        return svg.Point(x, row.error, None, None, f"{cost}: {short(row.error)}", pair_key(c, row))
    figure = row.figures[word]
    low, high = (figure.low, figure.high) if bounded(figure) else (None, None)
    return svg.Point(x, figure.value, low, high, f"{cost}: {told(figure)}", pair_key(c, row))


def choice(charts: Sequence[Chart]) -> str:
    """The control that chooses the metric; nothing where there is one."""
    if len(charts) < 2:
        return ""
    options = "".join(f'<option value="{escape(chart.word)}">{escape(chart.title)}</option>' for chart in charts)
    return f'<p class="choice"><label for="metric">Show</label><select id="metric">{options}</select></p>'


def figures(charts: Sequence[Chart]) -> str:
    parts = []
    for i, chart in enumerate(charts):
        hidden = " hidden" if i else ""
        parts += [f'<figure data-metric="{escape(chart.word)}"{hidden}>{picture}</figure>'
                  for picture in chart.files.values()]
    return "\n".join(parts)


def legend(c: Comparison) -> str:
    return "\n".join(f"<li>{svg.legend_mark(number)}<span>{escape(name)}</span></li>"
                     for number, name in enumerate(c.names) if any(row.name == name for row in c.rows))
