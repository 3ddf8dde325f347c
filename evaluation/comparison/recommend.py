"""Which sampler to use, in words, by a rule on one metric.

The floor is the metric of held-out against training examples: as good as samples that come from the data. A row (a sampler at
a budget) is *at the floor* if its 95 % interval reaches it. Two rows *differ* if their intervals do not overlap.

1. If rows are at the floor, the candidates are these. Else they are the rows that do not differ from the best value.
2. The recommended row is the candidate with the fewest evaluations; among those of equal evaluations the one with the best
   value.
3. More evaluations help if a row with more of them differs from the recommended one and is better.

Intervals that overlap do not show that two rows are equal, only that so many samples cannot tell them apart; the words say
so. The intervals are those of one row at a time. The samples share their noise, so a difference between two rows is surer
than their intervals suggest, and the rule errs towards "not told apart".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def at_floor(figure: Figure) -> bool:
    """Whether the interval reaches the floor."""
    if figure.floor is None:
        return False
    return figure.low <= figure.floor if figure.better == "lower" else figure.high >= figure.floor


def better(a: Figure, b: Figure) -> bool:
    """Whether a is better than b, and their intervals do not overlap."""
    return a.high < b.low if a.better == "lower" else a.low > b.high


def recommend(rows: Sequence[Row], metric: str) -> Recommendation:
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
    floored = [row for row in known if at_floor(row.figures[metric])]
    candidates = floored or [row for row in known if not better(best.figures[metric], row.figures[metric])]
    chosen = min(candidates, key=lambda row: (row.nfe, value(row)))
    figure = chosen.figures[metric]
    sentences = [_first(chosen, figure, metric, bool(floored)), _more(known, chosen, metric)]
    if not floored and figure.floor is None:
        sentences.append(f"There is no floor of {words(metric)} to compare with, so how much better samples could be is "
                         "not known.")
    sentences += [_other(rows, name, metric, bool(floored), chosen)
                  for name in dict.fromkeys(row.name for row in known) if name != chosen.name]
    sentences.append(_honest(figure, metric, bool(floored), len(candidates)))
    return Recommendation(chosen, tuple(filter(None, sentences)), bool(floored))


def words(metric: str) -> str:
    """A metric's name in a sentence."""
    known = {"fid": "FID", "kid": "KID", "mmd": "MMD", "inception_score": "the Inception score",
             "sliced_wasserstein": "the sliced Wasserstein distance", "energy": "the energy distance"}
    return known.get(metric, metric.replace("_", " "))


def told(figure: Figure) -> str:
    """A figure with its interval: "0.031 [0.028, 0.034]"."""
    if not (math.isfinite(figure.low) and math.isfinite(figure.high)):
        return short(figure.value)
    return f"{short(figure.value)} [{short(figure.low)}, {short(figure.high)}]"


def evaluations(nfe: float) -> str:
    return f"{nfe:.4g} evaluation{'' if nfe == 1 else 's'}"


def _first(row: Row, figure: Figure, metric: str, floored: bool) -> str:
    """What is recommended, and its figure."""
    if floored:
        return (f"Use {row.name} with {evaluations(row.nfe)}: {words(metric)} is at the floor, {told(figure)} against "
                f"{short(figure.floor or 0)} of held-out examples.")
    floor = "" if figure.floor is None else f", above the floor of {short(figure.floor)}" if figure.better == "lower" else \
        f", below the floor of {short(figure.floor)}"
    what = "reaches the floor" if figure.floor is not None else "is told from it at more evaluations"
    return (f"{'No sampler ' + what + '. ' if figure.floor is not None else ''}Use {row.name} with {evaluations(row.nfe)}: "
            f"{words(metric)} is {told(figure)}{floor}, and no other is measurably better.")


def _more(known: Sequence[Row], chosen: Row, metric: str) -> str:
    """Whether more evaluations help."""
    more = [row for row in known if row.nfe > chosen.nfe]
    helped = [row for row in more if better(row.figures[metric], chosen.figures[metric])]
    if not more:
        return "No sampler was tried with more evaluations."
    if not helped:
        return "More evaluations do not help measurably."
    row = min(helped, key=lambda row: row.nfe)
    return f"More evaluations help a little still: {row.name} with {evaluations(row.nfe)} has {told(row.figures[metric])}."


def _other(rows: Sequence[Row], name: str, metric: str, floored: bool, chosen: Row) -> str:
    """What another sampler needs to be as good."""
    own = sorted((row for row in rows if row.name == name and metric in row.figures), key=lambda row: row.nfe)
    good = [row for row in own if (at_floor(row.figures[metric]) if floored
                                   else not better(chosen.figures[metric], row.figures[metric]))]
    level = "at the floor" if floored else "not told apart from it"
    if not good:
        last = own[-1]
        return f"{name} is not {'at the floor' if floored else 'as good'} by {evaluations(last.nfe)}: " \
               f"{told(last.figures[metric])}."
    after = [row for row in own if row.nfe > good[0].nfe and row not in good]
    again = f", but not with {' and '.join(f'{row.nfe:.4g}' for row in after)}" if after else ""
    return f"{name} needs {evaluations(good[0].nfe)}, {level} with {told(good[0].figures[metric])}{again}."


def _honest(figure: Figure, metric: str, floored: bool, candidates: int) -> str:
    """What the intervals do not say."""
    what = "a smaller distance to the floor" if floored else "smaller differences"
    overlapping = f"{candidates} rows are {'at the floor' if floored else 'not told apart'}: " if candidates > 1 else ""
    return (f"{overlapping[:1].upper()}{overlapping[1:]}{'their' if candidates > 1 else 'The'} 95 % intervals come from "
            f"{figure.samples:,} samples each; more samples would show {what}.")
