"""One self-contained HTML file of a comparison of samplers, and the files behind it.

The page asks for nothing from elsewhere: its pictures are PNGs in data URIs, its charts inline SVG, its style and its script
lie in it, and a content security policy in its head forbids everything else. Names of runs, classes and data sets may hold
any characters; they are escaped in markup (html.escape) and in the data that the script reads (`as_json`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.evaluation.page import charts, parts, sheets
from scorefield.evaluation.page.svg import standing_alone
from scorefield.numerics.text import printable

if TYPE_CHECKING:
    from scorefield.evaluation.comparison.compare import Comparison

HERE = Path(__file__).parent
MOST = 5_000_000                                            # bytes of a page
OF_SHEETS, OF_FILM, OF_NEIGHBOURS = 3_200_000, 800_000, 250_000      # bytes of its pictures, as data URIs


@dataclass(frozen=True)
class Page:
    """The page's text, and the files behind it by name."""

    html: str
    files: dict[str, bytes] = field(default_factory=dict)


def build(comparison: Comparison) -> Page:
    """The page of a comparison.

        page = build(compare(model, dataset))
        Path("index.html").write_text(page.html)
    """
    draw = sheets.renderer(comparison.codec, comparison.shape, comparison.behind, comparison.columns)
    viewer = parts.Viewer.of(comparison, draw, OF_SHEETS)
    drawn = charts.of(comparison)
    films, sections, files = parts.sections(comparison, draw, OF_FILM, OF_NEIGHBOURS)
    script = (HERE / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {"pictures": viewer.pictures, "places": viewer.places, "budgets": viewer.budget_words, "films": films}
    values = {
        "script": script, "script_hash": f"sha256-{digest}", "style": _style(), "data": as_json(data),
        "title": escape(comparison.title), "facts": escape(parts.facts(comparison)),
        "recommendation": parts.recommendation(comparison), "table": parts.table(comparison),
        "notes": parts.notes(comparison, viewer.tiles), "sections": sections,
        "metric_choice": charts.choice(drawn), "charts": charts.figures(drawn), "legend": charts.legend(comparison),
        "quality_text": charts.TEXT.format(counted=comparison.words.counted), **viewer.fields(),
    }
    html = printable(filled((HERE / "page.html").read_text(), values))
    files |= viewer.files | {f"{name}.svg": standing_alone(svg).encode()
                             for chart in drawn for name, svg in chart.files.items()}
    return Page(html, files)


def filled(template: str, values: dict[str, str]) -> str:
    """The template with {{name}} replaced by each value; what a value holds is not read again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def as_json(data: Any) -> str:
    """JSON that may stand in a script element: no text of it can end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _style() -> str:
    return (HERE / "page.css").read_text() + (HERE / "svg.css").read_text()
