"""The parts of the page of a comparison, as markup; every text from outside goes through html.escape."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scorefield.data.codec import Points
from scorefield.evaluation.comparison.recommend import evaluations, told, words
from scorefield.evaluation.page import plane, sheets, svg
from scorefield.evaluation.page.charts import pair_key
from scorefield.numerics.text import short_number as short

if TYPE_CHECKING:
    from scorefield.evaluation.comparison.compare import Comparison, Row
    from scorefield.evaluation.page.sheets import Renderer

EXACT = "exact flow"      # the name that the page gives to the tight solution
Films = dict[str, list[dict[str, Any]]]


def stem(name: str, budget: int | None) -> str:
    """The name of a pair's files: "ddim:eta=1" with 10 evaluations is ddim_eta1_10."""
    text = re.sub(r"[^\w+.-]", "-", name.replace(":", "_").replace("=", ""))
    return text if budget is None else f"{text}_{budget}"


@dataclass(frozen=True)
class Viewer:
    """The pictures of all pairs, where each is shown, the sampler and the budget shown first.

    pictures  each with src, alt, caption and the key of its pair; without src the caption says why
    places    for each choice, the picture at each budget
    """

    pictures: list[dict[str, str]]
    places: list[list[int]]
    choices: list[str]
    budget_words: list[str]
    files: dict[str, bytes]
    tiles: int
    first: tuple[int, int]
    comparison: Comparison
    draw: Renderer

    @classmethod
    def of(cls, c: Comparison, draw: Renderer, most: int) -> Viewer:
        """Pictures of at most `most` bytes together."""
        sets: list[Tensor] = [row.shown for row in c.rows] + ([] if c.solution is None else [c.solution])
        encoded, tiles = sheets.fitting(
            lambda number, palette: [sheets.png(draw(x, number, palette)) for x in sets], most, min(map(len, sets)))
        files = {f"{stem(row.name, row.budget)}.png": file for row, file in zip(c.rows, encoded, strict=False)}
        pictures = [{"src": sheets.data_uri(file), "alt": _alt(row, draw, tiles), "caption": caption(c, row, draw),
                     "pair": pair_key(c, row)} for row, file in zip(c.rows, encoded, strict=False)]
        places = []
        for name in c.names:
            own: list[int] = []
            for budget in c.budgets:
                found = [i for i, row in enumerate(c.rows) if row.name == name and row.budget in (budget, None)]
                if not found:
                    reasons = [out.reason for out in c.left_out if out.name == name and out.budget in (budget, None)]
                    pictures.append({"src": "", "alt": "", "pair": "",
                                     "caption": f"{name} is left out here: {(reasons or ['it was not run'])[0]}."})
                own.append(found[0] if found else len(pictures) - 1)
            places.append(own)
        choices = list(c.names)
        if c.solution is not None:
            files["exact_flow.png"] = encoded[-1]
            pictures.append({"src": sheets.data_uri(encoded[-1]), "pair": "", "alt": "The exact flow from the same noise.",
                             "caption": "The flow from the same noise, solved tightly: what every deterministic sampler "
                                        "approaches as its evaluations grow."})
            places.append([len(pictures) - 1] * len(c.budgets))
            choices.append(EXACT)
        row = c.recommendation.row or c.rows[0]
        budget = c.budgets.index(row.budget) if row.budget in c.budgets else 0
        return cls(pictures, places, choices, [evaluations(b) for b in c.budgets], files, tiles,
                   (choices.index(row.name), budget), c, draw)

    def fields(self) -> dict[str, str]:
        """The values of the template that this part sets."""
        sampler, budget = self.first
        shown = self.pictures[self.places[sampler][budget]]
        many = f"{self.tiles} draws of noise" if self.draw.text != "points" else "draws of noise"
        said = self.comparison.words
        return {
            "kicker": escape(said.kicker), "samples_title": escape(said.title), "choice_title": escape(said.choice),
            "samples_text": escape(said.text.format(shown=many)), "picture_class": "pixels" if self.draw.pixels else "drawn",
            "first_src": shown["src"], "first_alt": escape(shown["alt"]), "first_caption": escape(shown["caption"]),
            "first_budget": self.budget_words[budget], "first_budget_index": str(budget),
            "last_budget_index": str(len(self.budget_words) - 1),
            "budget_marks": "".join(f'<option value="{i}" label="{b}"></option>'
                                    for i, b in enumerate(self.comparison.budgets)),
            "budget_ticks": "".join(f"<span>{b}</span>" for b in self.comparison.budgets),
            "choices": "\n".join(self._choice(i, name) for i, name in enumerate(self.choices)),
        }

    def _choice(self, i: int, name: str) -> str:
        sampler, budget = self.first
        shown = self.pictures[self.places[i][budget]]
        there = f'src="{shown["src"]}"' if shown["src"] else "hidden"
        why = "" if shown["src"] else escape(shown["caption"])
        kind = "pixels" if self.draw.pixels else "drawn"
        checked = " checked" if i == sampler else ""
        return (f'<label><span class="name"><input type="radio" name="sampler" value="{i}"{checked}>{broken(name)}</span>'
                f'<img class="{kind}" {there} alt=""><span class="missing"{"" if why else " hidden"}>{why}</span></label>')


def broken(name: str) -> str:
    """A name that may go on in the next line after an underscore or a colon."""
    return re.sub("([_:])", r"\1<wbr>", escape(name))


def _alt(row: Row, draw: Renderer, tiles: int) -> str:
    many = f"{tiles} {draw.text}" if draw.text != "points" else f"{len(row.shown)} points"
    return f"{many} by {row.name} with {evaluations(row.nfe)}."


def caption(c: Comparison, row: Row, draw: Renderer) -> str:
    """What a pair's picture shows, in a sentence or two."""
    own = f"{row.name}: {evaluations(row.nfe)}" + (", as many as it chose" if row.budget is None else "")
    own += f", {short(row.seconds * 1e3)} ms {c.words.unit}. "
    if c.metrics[0] in row.figures:
        name = words(c.metrics[0]).removeprefix("the ")
        own += f"{name[:1].upper()}{name[1:]} {told(row.figures[c.metrics[0]])}. "
    if row.error is not None:
        own += f"Distance to the exact flow {short(row.error)}. "
    if isinstance(draw, sheets.Plane) and (outside := draw.outside(row.shown)):
        own += f"{outside} of {len(row.shown)} points lie outside of the picture. "
    return own.strip()


def facts(c: Comparison) -> str:
    said = c.words
    return (f"{len(c.rows)} {said.rows}, {c.n:,} {said.counted} {said.how}, seed {c.seed}, on {c.device}. "
             + ". ".join(f"{name[:1].upper()}{name[1:]}: {value}" for name, value in c.facts.items()) + ".")


def recommendation(c: Comparison) -> str:
    first, *rest = c.recommendation.sentences
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in rest)
    return f'<p class="lead">{escape(first)}</p><ul>{items}</ul>'


def table(c: Comparison) -> str:
    """Every number of every row."""
    heads = [c.words.choice, "Budget", "Evaluations", f"Milliseconds {c.words.unit}",
             *["Distance to the exact flow"] * c.words.flow]
    for metric in c.metrics:
        name = words(metric).removeprefix("the ")
        heads.append(name[:1].upper() + name[1:])
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = []
    for row in c.rows:
        cells = [str(row.budget) if row.budget else "its own", f"{row.nfe:.4g}", short(row.seconds * 1e3),
                 *["draws noise" if row.error is None else short(row.error)] * c.words.flow]
        for metric in c.metrics:
            figure = row.figures.get(metric)
            value, _, interval = ("", "", "") if figure is None else told(figure).partition(" ")
            even = row.matched.get(metric)
            first = "" if even is None else f"<small>first {even.samples:,}: {told(even)}</small>"
            cells.append(f"{value}<small>{interval}</small>{first}")
        best = ' class="recommended"' if row is c.recommendation.row else ""
        body.append(f'<tr data-pair="{escape(pair_key(c, row))}"{best}><th scope="row">{broken(row.name)}</th>'
                    + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    floors = [c.rows[0].figures[metric] for metric in c.metrics if metric in c.rows[0].figures]
    if any(figure.floor is not None for figure in floors):
        body.append('<tr><th scope="row">held-out examples: the floor</th>' + "<td></td>" * (3 + c.words.flow) + "".join(
            "<td></td>" if figure.floor is None else
            f"<td>{short(figure.floor)}<small>of {figure.floor_samples:,}</small></td>"
            for figure in floors) + "</tr>")
    return (f"<table><caption>Every sampler at every budget; in brackets 95 % intervals.</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def notes(c: Comparison, tiles: int) -> str:
    """Definitions, what was left out and why, and the times."""
    exact = next((row for row in c.rows if row.accuracy is not None), None)
    items = {
        "Budget": c.words.budget,
        "Floor": "the same metric of held-out examples against the training examples, of as many as there are samples if so "
                 "many are held out: as good as samples from the data. Where fewer are held out, a metric whose mean goes "
                 "by the number of examples is judged by the first samples of each row, as many as are held out.",
        "Recommendation": c.words.recommendation,
    }
    if all(row.figures[metric].floor is None for row in c.rows for metric in c.metrics if metric in row.figures):
        del items["Floor"]
    if exact is not None:
        items["Exact flow"] = ("the probability-flow ODE from the same noise by an exponential Adams method of order 5, its "
                               "steps doubled until a doubling moves the median sample by less than 1e-6. The last one "
                               f"moved it by {short(exact.accuracy or 0)}. The distance is RMS per dimension, the median "
                               "over the samples.")
    distances = [words(metric) for metric in ("sliced_wasserstein", "energy") if metric in c.metrics]
    if distances and c.codec.levels is None:
        standard = isinstance(c.codec, Points) and (c.codec.mean, c.codec.std) != (0.0, 1.0)
        items["Units"] = f"{' and '.join(distances)} are in " + (
            "standard deviations of each column or channel of the data." if standard else "the units of the data.")
    for metric in c.metrics:
        for text in {row.figures[metric].note for row in c.rows if metric in row.figures} - {""}:
            items[words(metric)] = text
    left = [f"{out.name}{'' if out.budget is None else f' with {out.budget}'}: {out.reason}" for out in c.left_out]
    if left:
        items["Left out"] = "; ".join(left) + "."
    if c.extras.notes:
        items["Not shown"] = " ".join(c.extras.notes)
    items["Time"] = (f"sampling {c.sampling_seconds:.1f} s, all else {c.other_seconds:.1f} s before this page was written. "
                     "Batches are the outer loop and samplers the inner one.")
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()) + "</dl>"


# ---- sections that not every comparison has ----------------------------------------------------------------------------


def sections(c: Comparison, draw: Renderer, of_film: int, of_neighbours: int) -> tuple[Films, str, dict[str, bytes]]:
    """The films for the script, the markup, and the files behind it."""
    films: Films = {}
    files: dict[str, bytes] = {}
    html = [_film(c, draw, of_film, films), plane.section(c, films, files, _player), _likelihood(c, files),
            _neighbours(c, draw, of_neighbours)]
    return films, "\n".join(filter(None, html)), files


def section(word: str, title: str, text: str, body: str) -> str:
    return (f'<section aria-labelledby="{word}-title"><h2 id="{word}-title">{escape(title)}</h2><p>{escape(text)}</p>'
            f"{body}</section>")


def _player(word: str, label: str, frames: list[dict[str, Any]], kind: str, captions: list[str], plays: bool) -> str:
    """Pictures, the slider that chooses a frame of them, and the button that plays them; it starts at the last frame."""
    last = len(frames) - 1
    figures = "".join(f'<figure><div class="frame"><img class="{kind}" src="{src}" alt="{escape(alt)}"></div>'
                      f"<figcaption>{escape(text)}</figcaption></figure>"
                      for src, alt, text in zip(frames[-1]["src"], frames[-1]["alt"], captions, strict=True))
    pair = "pair" if len(captions) > 1 else "one"
    button = '<button type="button" hidden>Play</button>' if plays else ""
    alone = "" if plays else " alone"
    return (f'<div class="film" data-film="{word}"><div class="{pair}">{figures}</div><div class="bar{alone}">'
            f'<label for="{word}-at">{escape(label)}: <output for="{word}-at">{escape(frames[-1]["text"])}</output></label>'
            f'{button}<input id="{word}-at" type="range" min="0" max="{last}" step="1" value="{last}" '
            f'aria-valuetext="{escape(frames[-1]["text"])}"></div></div>')


Player = Callable[[str, str, list[dict[str, Any]], str, list[str], bool], str]


def _film(c: Comparison, draw: Renderer, most: int, films: Films) -> str:
    film = c.extras.film
    if film is None:
        return ""
    both = [x for pair in zip(film.noisy, film.clean, strict=True) for x in pair]
    encoded, _ = sheets.fitting(lambda number, palette: [sheets.png(draw(x, number, palette)) for x in both], most,
                                film.noisy.shape[1])
    frames = []
    for i, t in enumerate(film.times):
        alts = [f"The state at t = {t:.3g}.", f"The predicted data at t = {t:.3g}."]
        frames.append({"src": [sheets.data_uri(encoded[2 * i]), sheets.data_uri(encoded[2 * i + 1])], "alt": alts,
                       "text": f"t = {t:.3g}"})
    films["film"] = frames
    text = (f"From noise to data by {film.name} with {evaluations(film.evaluations)}: the state, and what the model expects "
            "the data to be when it sees that state.")
    captions = ["State x_t, relative to the spread that it has at that time", "Predicted data, E[x_0 given x_t]"]
    return section("film", "The denoising film", text,
                   _player("film", "Time", frames, "pixels" if draw.pixels else "drawn", captions, True))


def _likelihood(c: Comparison, files: dict[str, bytes]) -> str:
    sets = [(name, values) for name, values in c.extras.likelihood.items() if values]
    if not sets:
        return ""
    unit = "bits per dimension"
    picture = svg.histogram(sets, "Likelihood", f"{unit}, lower is likelier")
    files["likelihood.svg"] = svg.standing_alone(picture).encode()
    means = ", ".join(f"{name} {torch.tensor(values).double().mean():.4g} ({len(values)} examples)" for name, values in sets)
    legend = "".join(f'<li><svg viewBox="0 0 38 16" aria-hidden="true"><rect class="f{i}" x="9" y="1" width="20" height="14"'
                     f'{" fill-opacity=" + chr(34) + ".45" + chr(34) if i else ""}/></svg><span>{escape(name)}</span></li>'
                     for i, (name, _) in enumerate(sets))
    text = (f"How likely the model finds examples of the data, in {unit}. Means: {means}. Held-out examples that are less "
            "likely than training examples show how much the model has memorised.")
    return section("likelihood", "Likelihood of the data", text,
                   f'<ul class="legend">{legend}</ul><div class="charts"><figure>{picture}</figure></div>')


def _neighbours(c: Comparison, draw: Renderer, most: int) -> str:
    if c.extras.neighbours is None:
        return ""
    samples, nearest, distance = c.extras.neighbours
    pairs = [torch.stack([a, b]) for a, b in zip(samples, nearest, strict=True)]
    encoded, _ = sheets.fitting(lambda number, palette: [sheets.png(draw(x, 2, palette)) for x in pairs], most, 1)
    kind = "pixels" if draw.pixels else "drawn"
    items = "".join(f'<li><img class="{kind}" src="{sheets.data_uri(file)}" alt="Sample {i + 1}, and its nearest training '
                    f'example.">{short(float(d))}</li>' for i, (file, d) in enumerate(zip(encoded, distance, strict=True)))
    row = c.recommendation.row
    assert row is not None
    text = (f"Samples of {row.name} with {evaluations(row.nfe)}, each on the left, beside the training example that is "
            "nearest to it, and their RMS distance per dimension. A sample that equals its neighbour was memorised.")
    return section("neighbours", "Nearest training examples", text, f'<ul class="neighbours">{items}</ul>')
