"""Which sampler to use, in words, by a rule on one metric.

The floor is the metric of held-out against training examples: as good as samples that come from the data. A row (a sampler
at a budget) is *at the floor* if its 95 % interval reaches it, or without intervals its value. Metrics such as FID have a
bias that goes by the number of examples; there the floor and what is judged by it, the row's first samples, are of equal
numbers. A row is *as good as the best* if its value lies within the 95 %
interval of the row with the best value: what it loses is less than the uncertainty of the best. A row is *measurably better*
than another if it is better and their intervals do not overlap.

1. The candidates are the rows at the floor that are as good as the best; where none is at the floor, the rows that are as
   good as the best.
2. The recommended row is the candidate with the fewest evaluations; among those of equal evaluations the one with the best
   value.
3. Each other sampler is said to need the evaluations of its first row that would be a candidate.
4. More evaluations help if a row with more of them is measurably better than the recommended one.

Intervals that overlap do not show that two rows are equal, only that so many samples cannot tell them apart; the words say
so. The intervals are those of one row at a time. The samples share their noise, so a difference between two rows is surer
than their intervals suggest, and the rule errs towards "not told apart".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorefield.evaluation.comparison.words import SAMPLES, Words
from scorefield.numerics.text import short_number as short

if TYPE_CHECKING:
    from scorefield.evaluation.comparison.compare import Row
    from scorefield.evaluation.metrics import Figure


@dataclass(frozen=True)
class Recommendation:
    """The row, None if there is none; sentences, the first of which says it all; whether it is at the floor."""

    row: Row | None
    sentences: tuple[str, ...]
    at_floor: bool

    def __str__(self) -> str:
        return " ".join(self.sentences)


def judged(row: Row, metric: str) -> Figure:
    """The figure that may be compared with the floor: of as many samples, where the number matters."""
    return row.matched.get(metric, row.figures[metric])


def at_floor(figure: Figure) -> bool:
    """Whether the interval reaches the floor; without an interval, the value."""
    if figure.floor is None:
        return False
    nearest = figure.low if figure.better == "lower" else figure.high
    nearest = nearest if math.isfinite(nearest) else figure.value
    return nearest <= figure.floor if figure.better == "lower" else nearest >= figure.floor


def bounded(figure: Figure) -> bool:
    """Whether it has an interval."""
    return math.isfinite(figure.low) and math.isfinite(figure.high)


def better(a: Figure, b: Figure) -> bool:
    """Whether a is measurably better than b: their intervals do not overlap."""
    return a.high < b.low if a.better == "lower" else a.low > b.high


def as_good(figure: Figure, best: Figure) -> bool:
    """Whether the value lies within the best row's interval, or is that row's value where it has no interval."""
    if best.better == "lower":
        return figure.value <= (best.high if math.isfinite(best.high) else best.value)
    return figure.value >= (best.low if math.isfinite(best.low) else best.value)


def recommend(rows: Sequence[Row], metric: str, of: Words = SAMPLES) -> Recommendation:
    """The recommendation by the rule above, from the rows' figures of that metric.

        print(recommend(rows, "sliced_wasserstein"))
    """
    known = [row for row in rows if metric in row.figures and math.isfinite(row.figures[metric].value)]
    if not known:
        return Recommendation(None, (f"No sampler has a figure of {words(metric)}, so none is recommended.",), False)
    sign = 1 if known[0].figures[metric].better == "lower" else -1

    def value(row: Row) -> float:
        return sign * row.figures[metric].value

    best = min(known, key=value)
    good = [row for row in known if as_good(row.figures[metric], best.figures[metric])]
    floored = [row for row in good if at_floor(judged(row, metric))]
    candidates = floored or good
    chosen = min(candidates, key=lambda row: (row.nfe, value(row)))
    sentences = [_first(chosen, metric, bool(floored)), _more(known, chosen, best, metric)]
    if chosen.figures[metric].floor is None:
        sentences.append(f"There is no floor of {words(metric)}, so how much better {of.made} could be is not known.")
    sentences += [_other([row for row in known if row.name == name], candidates, metric, bool(floored))
                  for name in dict.fromkeys(row.name for row in known) if name != chosen.name]
    sentences.append(_honest(chosen.figures[metric], bool(floored), len(candidates), len(known), of))
    return Recommendation(chosen, tuple(sentences), bool(floored))


def words(metric: str) -> str:
    """A metric's name in a sentence."""
    known = {"fid": "FID", "kid": "KID", "mmd": "MMD", "inception_score": "the Inception score",
             "sliced_wasserstein": "the sliced Wasserstein distance", "energy": "the energy distance",
             "energy_score": "the energy score", "psnr": "PSNR of the answers", "psnr_mean": "PSNR of the mean",
             "ssim": "SSIM of the answers", "ssim_mean": "SSIM of the mean"}
    return known.get(metric, metric.replace("_", " "))


def told(figure: Figure) -> str:
    """A figure with its interval: "0.031 [0.028, 0.034]"."""
    if not bounded(figure):
        return short(figure.value)
    return f"{short(figure.value)} [{short(figure.low)}, {short(figure.high)}]"


def evaluations(nfe: float) -> str:
    return f"{nfe:.4g} evaluation{'' if nfe == 1 else 's'}"


def _first(row: Row, metric: str, floored: bool) -> str:
    """What is recommended, and its figure."""
    figure, even, use = row.figures[metric], judged(row, metric), f"Use {row.name} with {evaluations(row.nfe)}"
    if figure.floor is None:
        most = "no row is measurably better" if bounded(figure) else "no row has a better value"
        return f"{use}: {words(metric)} is {told(figure)}, and {most}."
    floor = f"{short(figure.floor)} of {figure.floor_samples:,} held-out examples"
    of = f"{told(even)} of {'' if even is figure else 'the first '}{even.samples:,} samples"
    if floored:
        where = "at the floor" if bounded(figure) else "no worse than the floor (values alone, without intervals)"
        return f"{use}: {words(metric)} is {where}, {of} against {floor}{_all(figure, even)}."
    reaches = "reaches" if bounded(figure) else "has a value that reaches"
    return (f"No sampler {reaches} the floor, {floor}, so the model or its training limits the quality. {use}: "
            f"{words(metric)} is {of}{_all(figure, even)}.")


def _all(figure: Figure, even: Figure) -> str:
    """The figure of all samples, where another one is judged."""
    return "" if figure is even else f"; of all {figure.samples:,} samples it is {told(figure)}"


def _more(known: Sequence[Row], chosen: Row, best: Row, metric: str) -> str:
    """Whether more evaluations help."""
    more = [row for row in known if row.nfe > chosen.nfe]
    if not more:
        return "More evaluations were not tried, so they may help."
    helped = [row for row in more if better(row.figures[metric], chosen.figures[metric])]
    if helped:
        row = min(helped, key=lambda row: row.nfe)
        return f"More evaluations help still: {row.name} with {evaluations(row.nfe)} has {told(row.figures[metric])}."
    if best is chosen:
        return "More evaluations do not help."
    if not bounded(best.figures[metric]):
        return (f"The best value is {told(best.figures[metric])}, of {best.name} with {evaluations(best.nfe)}.")
    return (f"More evaluations do not help measurably: the best figure is {told(best.figures[metric])}, of {best.name} with "
            f"{evaluations(best.nfe)}.")


def _other(own: Sequence[Row], candidates: Sequence[Row], metric: str, floored: bool) -> str:
    """What another sampler needs to be as good."""
    own = sorted(own, key=lambda row: row.nfe)
    good, last = [row for row in own if any(row is other for other in candidates)], own[-1]
    state = "at the floor" if floored else "as good"
    if not good:
        most = f"{'by' if len(own) > 1 else 'with'} {evaluations(last.nfe)}"
        return f"{last.name} is not {state} {most}: {told(last.figures[metric])}."
    after = [row for row in own if row.nfe > good[0].nfe and not any(row is other for other in good)]
    again = f", but is not with {' and '.join(f'{row.nfe:.4g}' for row in after)}" if after else ""
    return f"{last.name} is {state} from {evaluations(good[0].nfe)} on: {told(good[0].figures[metric])}{again}."


def _honest(figure: Figure, floored: bool, candidates: int, rows: int, of: Words) -> str:
    """What the intervals do not say."""
    if rows == 1:
        return f"Only one row was measured, of {figure.samples:,} {of.counted}; nothing is compared."
    if not bounded(figure):
        return "There are no intervals, so it is not known which differences are chance."
    more = "a smaller distance to the floor" if floored else "smaller differences"
    if candidates == 1:
        return f"The rows are judged by 95 % intervals, which come from {figure.samples:,} {of.counted} each."
    return (f"{candidates} rows {'reach the floor' if floored else 'are as good as the best'} within 95 % intervals, which "
            f"come from {figure.samples:,} {of.counted} each. That does not make them equal: more {of.counted} would show "
            f"{more}.")
