"""Points in the plane: the density of the model's flow, its score at several times, and the paths of samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scorefield.evaluation.page import sheets, svg

if TYPE_CHECKING:
    from PIL import Image

    from scorefield.evaluation.comparison.compare import Comparison
    from scorefield.evaluation.comparison.extras import Field
    from scorefield.evaluation.page.sheets import Plane

SIZE = 440      # of the picture of paths
ENLARGED = 6    # pixels for a cell of the density


def section(c: Comparison, films: dict[str, list[dict[str, Any]]], files: dict[str, bytes], player: Callable[..., str]
            ) -> str:
    """The markup of this section, "" if the data are not points; adds to the films and to the files behind the page."""
    from scorefield.evaluation.page.parts import section as framed

    extras = c.extras
    if extras.paths is None:
        return ""
    parts, bodies = [], []
    which = f" given class {extras.of_class}" if extras.of_class else ""
    if extras.density is not None:
        picture = density(extras.density)
        sheets.Plane.around(c.codec, c.behind).mark(picture, 255)
        file = sheets.png(picture)
        files["density.png"] = file
        bodies.append(_framed(f'<img class="drawn" src="{sheets.data_uri(file)}" alt="Density of the model in the plane.">',
                              f"Density of the model's flow{which}; full colour is its largest value in the picture."))
        parts.append("the density of the model")
    drawn = paths(c)
    files["paths.svg"] = svg.standing_alone(drawn).encode()
    bodies.append(_framed(drawn, f"Paths of {extras.paths.shape[1]} samples from noise to data; dots are their ends."))
    parts.append("the paths of samples")
    body = f'<div class="pair">{"".join(bodies)}</div>'
    if extras.fields:
        frames = []
        for i, field in enumerate(extras.fields):
            file = sheets.png(arrows(field))
            files[f"score_{i}.png"] = file
            frames.append({"src": [sheets.data_uri(file)], "alt": [f"Arrows of the score at t = {field.t:.3g}."],
                           "text": f"t = {field.t:.3g}"})
        films["field"] = frames
        body += f"<h3>The score at several times{escape(which)}</h3>" + player(
            "field", "Time", frames, "drawn", ["Arrows point where noisy data (grey) become denser, grad log p_t; their "
                                               "lengths are relative to the longest ones at that time"], False)
        parts.append("the score")
    text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] + "."
    return framed("plane", "In the plane", text[:1].upper() + text[1:], body)


def _framed(picture: str, caption: str) -> str:
    return f'<figure><div class="frame">{picture}</div><figcaption>{escape(caption)}</figcaption></figure>'


def density(log_density: Tensor) -> Image.Image:
    """A heat map of the density; its square root, so that thin parts are seen, too."""
    p = (log_density - log_density.max()).exp().sqrt()
    return sheets.heat(p.repeat_interleave(ENLARGED, 0).repeat_interleave(ENLARGED, 1))


def paths(c: Comparison) -> str:
    """The paths, in the window that holds them."""
    assert c.extras.paths is not None
    states, d = c.extras.paths.double(), c.extras.paths.shape[-1]
    xy = states[..., :2] if d > 1 else torch.stack([states[..., 0], torch.linspace(
        0, 1, len(states), dtype=torch.float64)[:, None].expand(states.shape[:2])], -1)
    reach = sheets.window(xy.flatten(0, 1).amin(0).numpy(), xy.flatten(0, 1).amax(0).numpy(), 0.03)
    lines = [[(float(a), float(b)) for a, b in xy[:, i]] for i in range(xy.shape[1])]
    film = c.extras.film
    by = "" if film is None else f" by {film.name}"
    return svg.paths(lines, reach, SIZE, "Paths of samples", f"{len(lines)} paths{by} from noise to data",
                     sheets.scales(c.codec, reach, d))


def arrows(field: Field) -> Image.Image:
    """The score as arrows over the noisy data."""
    from PIL import ImageDraw

    from scorefield.evaluation.comparison.extras import AS_IT_IS
    from scorefield.evaluation.page.sheets import PLANE, Plane

    window: Plane = dataclasses.replace(Plane.around(AS_IT_IS, field.data), ticks=((), ()))
    left, right, bottom, top = window.reach
    picture = window(field.data[:0])
    draw, cell = ImageDraw.Draw(picture), PLANE / math.sqrt(len(field.places))
    lengths = field.arrows.norm(dim=1)
    longest = float(lengths.quantile(0.9)) or 1.0
    for (x, y), (u, v), length in zip(field.places.tolist(), field.arrows.tolist(), lengths.tolist(), strict=True):
        if not math.isfinite(length) or length == 0:
            continue
        size = 0.85 * cell * max(0.25, min(1.0, length / longest))
        a, b = (x - left) / (right - left) * PLANE, (top - y) / (top - bottom) * PLANE
        du, dv = u / (right - left), -v / (top - bottom)      # as directions of the picture
        du, dv = du / math.hypot(du, dv), dv / math.hypot(du, dv)
        tip = (a + du * size / 2, b + dv * size / 2)
        draw.line([(a - du * size / 2, b - dv * size / 2), tip], fill=3, width=2)
        for turn in (2.6, -2.6):
            c, s = math.cos(turn), math.sin(turn)
            draw.line([tip, (tip[0] + (du * c - dv * s) * 6, tip[1] + (du * s + dv * c) * 6)], fill=3, width=2)
    return picture
