"""Charts as SVG: lines with intervals, histograms, arrows and paths. Each carries a title and a description.

Colours come from page/svg.css, which a page holds once and a file on its own holds itself (`standing_alone`). A series has
a symbol and, from the ninth on, a dash, too, so no colour is needed to tell them apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from scorefield.numerics.text import short_number

WIDTH, HEIGHT = 440, 320
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 32, 48
COLOURS, DASHES = 8, ("", "7 4", "2 3")
APART = 3.2      # units between the intervals of two series at one place


@dataclass(frozen=True)
class Point:
    """One mark: its place, the interval of y if it has one, what it says when pointed at, and the key of its pair."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str
    pair: str = ""


@dataclass(frozen=True)
class Series:
    """Points joined by a line. number: which colour, symbol and dash."""

    name: str
    number: int
    points: Sequence[Point]


def symbol(number: int, x: float, y: float, size: float = 4.6) -> str:
    """The mark of a series at a place."""
    s, k = size, number % COLOURS
    if k == 0:
        return f'<circle class="mark s{k}" cx="{x:.1f}" cy="{y:.1f}" r="{s * .95:.1f}"/>'
    outlines = {1: [(-s, -s), (s, -s), (s, s), (-s, s)], 2: [(0, -1.2 * s), (1.1 * s, .8 * s), (-1.1 * s, .8 * s)],
                3: [(0, -1.3 * s), (1.3 * s, 0), (0, 1.3 * s), (-1.3 * s, 0)],
                4: [(0, 1.2 * s), (1.1 * s, -.8 * s), (-1.1 * s, -.8 * s)],
                5: [(.5 * s, -s), (s, 0), (.5 * s, s), (-.5 * s, s), (-s, 0), (-.5 * s, -s)]}
    if k in outlines:
        path = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in outlines[k])
        return f'<polygon class="mark s{k}" points="{path}"/>'
    strokes = {6: [(-s, -s, s, s), (-s, s, s, -s)], 7: [(-s, 0, s, 0), (0, -s, 0, s)]}[k]
    path = " ".join(f"M{x + a:.1f} {y + b:.1f}L{x + c:.1f} {y + d:.1f}" for a, b, c, d in strokes)
    return f'<path class="mark s{k}" d="{path}"/>'


def legend_mark(number: int) -> str:
    """The line and the symbol of a series, for a list of names."""
    return (f'<svg viewBox="0 0 38 16" aria-hidden="true"><line class="line s{number % COLOURS}" x1="1" x2="37" y1="8" '
            f'y2="8"{_dash(number)}/>{symbol(number, 19, 8)}</svg>')


def _dash(number: int) -> str:
    dash = DASHES[number // COLOURS % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


class Axis:
    """A scale from values to places: its ticks, linear or logarithmic. Places run from `start` to `stop`."""

    def __init__(self, low: float, high: float, start: float, stop: float, log: bool):
        self.log, self.start, self.stop = log, start, stop
        if log:
            low, high = math.log10(low), math.log10(high)
        pad = (high - low) * 0.06 or (0.2 if log else abs(high) * 0.1 or 1)
        self.low, self.high = low - pad, high + pad

    def __call__(self, value: float) -> float:
        """The place of a value; of one that a logarithm does not know, the lower end."""
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        if not self.log:
            return _even(self.low, self.high, most)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**k for k in decades for d in digits if self.low <= math.log10(d * 10.0**k) <= self.high]
            if len(found) <= most + 1:
                return found
        return found[::math.ceil(len(found) / most)]


Tick = tuple[float, str]      # its share of the way from the lower end, and its number


def ticks_of(low: float, high: float, most: int = 6) -> list[Tick]:
    """Round numbers inside of an axis, with as many digits as tell them apart; none too near to its ends for a text."""
    if not high > low or not math.isfinite(high - low):
        return []
    values = _even(low, high, most)
    largest = max(abs(low), abs(high))
    digits = max(3, 1 + math.ceil(math.log10(largest / (high - low) * most)))
    if 1 <= largest < 1e6:
        digits = max(digits, len(str(int(largest))))      # 4000, not 4e+03
    shares = [(value - low) / (high - low) for value in values]
    return [(share, f"{value:.{digits}g}") for share, value in zip(shares, values, strict=True) if 0.06 < share < 0.94]


def _even(low: float, high: float, most: int) -> list[float]:
    step = _nice((high - low) / most)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(d * power for d in (1, 2, 5, 10) if d * power >= step * 0.999)


def drawing(width: float, height: float, title: str, text: str, body: str) -> str:
    """An SVG picture with its title and description, which a screen reader speaks."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-label="{escape(title)}. {escape(text)}"><title>{escape(title)}</title><desc>{escape(text)}</desc>{body}'
            "</svg>")


def standing_alone(svg: str) -> str:
    """The same picture as a file of its own, with its colours and a white ground."""
    style = (Path(__file__).parent / "svg.css").read_text()
    first, rest = svg.split(">", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{first}><style>{style}</style>' \
           f'<rect width="100%" height="100%" style="fill: #fff"/>{rest}\n'


def line_chart(series: Sequence[Series], title: str, xlabel: str, ylabel: str, log_x: bool = True,
               floor: float | None = None, floor_text: str = "") -> str:
    """Lines of y over x, with their intervals; y is logarithmic where all of it is positive and spans a decade.

    floor  a level that no sampler can be expected to beat, with its name
    """
    points = [p for s in series for p in s.points]
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None] + ([] if floor is None else [floor])
    log_y = min(values) > 0 and max(values) >= 10 * min(values)
    x = Axis(min(p.x for p in points), max(p.x for p in points), LEFT, WIDTH - RIGHT, log_x)
    y = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, log_y)
    body = [_axes(x, y, xlabel, ylabel + (" (log scale)" if log_y else ""))]
    for place, one in enumerate(series):
        shift = (place - (len(series) - 1) / 2) * APART
        body.append(_line(one, [(x(p.x) + shift, p) for p in one.points], y))
    if floor is not None:
        level, right = y(floor), WIDTH - RIGHT
        beside = level + 14 if level + 18 < HEIGHT - BOTTOM else level - 5      # below the line, where no sampler comes
        body.append(f'<line class="floor" x1="{LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>'
                    f'<text class="label halo" x="{LEFT + 4}" y="{beside:.1f}">{escape(floor_text)}</text>')
    said = "; ".join(f"{s.name}: " + ", ".join(p.text for p in s.points) for s in series)
    return drawing(WIDTH, HEIGHT, title, f"{ylabel} over {xlabel}. {floor_text and floor_text + '. '}{said}", "".join(body))


def _line(series: Series, places: Sequence[tuple[float, Point]], y: Axis) -> str:
    colour = f"s{series.number % COLOURS}"
    joined = " ".join(f"{x:.1f},{y(p.y):.1f}" for x, p in places)
    parts = [f'<polyline class="line {colour}" points="{joined}"{_dash(series.number)}/>' if len(places) > 1 else ""]
    for x, p in places:
        bar = ""
        if p.low is not None and p.high is not None:
            low, high = y(p.low), y(p.high)
            bar = (f'<path class="bar {colour}" d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6'
                   f'M{x - 3:.1f} {high:.1f}h6"/>')
        parts.append(f'<g data-pair="{escape(p.pair)}"><title>{escape(p.text)}</title>{bar}'
                     f'{symbol(series.number, x, y(p.y))}</g>')
    return f'<g data-series="{series.number}">{"".join(parts)}</g>'


def _axes(x: Axis, y: Axis, xlabel: str, ylabel: str) -> str:
    right, bottom, parts = WIDTH - RIGHT, HEIGHT - BOTTOM, []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     f'<text class="label" x="{LEFT - 7}" y="{at + 4.5:.1f}" text-anchor="end">{short_number(value)}</text>')
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
                     f'<text class="label" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{short_number(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(xlabel)}</text>')
    parts.append(f'<text x="2" y="15">{escape(ylabel)}</text>')      # above, where it can be read without turning
    return "".join(parts)


def histogram(sets: Sequence[tuple[str, Sequence[float]]], title: str, xlabel: str) -> str:
    """Shares of the values of one or two sets in common bins, drawn side by side, each with its mean."""
    values = [v for _, own in sets for v in own]
    low, high = min(values), max(values)
    n = max(6, min(24, round(math.sqrt(max(len(own) for _, own in sets)) * 1.6)))
    width = (high - low) / n or 1.0
    shares = []
    for _, own in sets:
        counts = [0] * n
        for v in own:
            counts[min(n - 1, int((v - low) / width))] += 1
        shares.append([count / len(own) for count in counts])
    x = Axis(low, low + n * width, LEFT, WIDTH - RIGHT, False)
    y = Axis(0.0, max(map(max, shares)), HEIGHT - BOTTOM, TOP, False)
    y.low = 0.0
    body, bottom = [_axes(x, y, xlabel, "share of the examples")], y(0.0)
    for k, own in enumerate(shares):
        for i, share in enumerate(own):
            left, right = x(low + i * width), x(low + (i + 1) * width)
            wide = (right - left - 1) / len(shares)
            hatched = ' fill-opacity=".45"' if k else ""
            body.append(f'<rect class="f{k}" x="{left + k * wide:.1f}" y="{y(share):.1f}" width="{wide:.1f}" '
                        f'height="{bottom - y(share):.1f}"{hatched}/>')
        mean = x(math.fsum(sets[k][1]) / len(sets[k][1]))
        body.append(f'<line class="bar s{k}" x1="{mean:.1f}" x2="{mean:.1f}" y1="{TOP}" y2="{bottom}"{_dash(8 * k)}/>')
    said = "; ".join(f"{name}: mean {math.fsum(own) / len(own):.4g} of {len(own)}, from {min(own):.4g} to {max(own):.4g}"
                     for name, own in sets)
    return drawing(WIDTH, HEIGHT, title, said, "".join(body))


def paths(lines: Sequence[Sequence[tuple[float, float]]], reach: tuple[float, float, float, float], size: int, title: str,
          text: str, ticks: tuple[Sequence[Tick], Sequence[Tick]] = ((), ())) -> str:
    """Lines in the plane, within reach = (left, right, bottom, top): each a path, its end a dot; ticks at the edges."""
    left, right, bottom, top = reach

    def at(point: tuple[float, float]) -> str:
        return f"{(point[0] - left) / (right - left) * size:.1f} {(top - point[1]) / (top - bottom) * size:.1f}"

    body = [f'<path class="thin s0" d="M{"L".join(at(p) for p in line)}"/>' for line in lines]
    for line in lines:
        cx, cy = at(line[-1]).split()
        body.append(f'<circle class="f1" cx="{cx}" cy="{cy}" r="2.6"/>')
    for share, number in ticks[0]:
        x = share * size
        body.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{size}" y2="{size - 5}"/><text class="label halo" '
                    f'x="{x:.1f}" y="{size - 8}" text-anchor="middle">{number}</text>')
    for share, number in ticks[1]:
        y = (1 - share) * size
        body.append(f'<line class="axis" x1="0" x2="5" y1="{y:.1f}" y2="{y:.1f}"/><text class="label halo" x="8" '
                    f'y="{y + 4.5:.1f}">{number}</text>')
    return drawing(size, size, title, text, "".join(body))
