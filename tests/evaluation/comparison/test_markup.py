"""The page of a comparison without a browser: its pictures decode, its data parse, and its script finds what it names."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from scorefield.evaluation import compare, page

from .conftest import EVIL, points

SCRIPT = (Path(page.__file__).parent / "page.js").read_text()


class Elements(HTMLParser):
    """All start tags with their attributes, and the texts of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.inside = dict(attrs).get("id", "code")

    def handle_endtag(self, tag):
        self.inside = None if tag == "script" else self.inside

    def handle_data(self, data):
        if self.inside is not None:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data

    def all(self, tag, **attributes):
        return [own for name, own in self.tags if name == tag and attributes.items() <= own.items()]


@pytest.fixture(params=["pictures", "points"])
def elements(request, of_pictures, oracle, tmp_path):
    if request.param == "pictures":
        return Elements((of_pictures[1] / "index.html").read_text())
    made = compare(*points(oracle, 200), ("auto", "euler_maruyama"), (4, 8), n=60, bootstrap=20, likelihood=0,
                   metrics=("energy", "sliced_wasserstein"), progress=False)
    return Elements(made.write(tmp_path / "compare").read_text())


def decodes(uri):
    kind, _, content = uri.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
        picture.load()
        return kind == "data:image/png;base64" and min(picture.size) > 0


def test_everything_that_the_script_reads_is_there(elements):
    data = json.loads(elements.scripts["data"])
    ids = {own["id"] for _, own in elements.tags if "id" in own}
    named = set(re.findall(r'(?:\$|getElementById)\("([\w-]+)"\)', SCRIPT))
    assert {"data", "budget", "picture", "missing", "caption", "budget-text", "metric"} <= named <= ids
    choices = elements.all("input", type="radio", name="sampler")
    assert [own["value"] for own in choices] == [str(i) for i in range(len(data["places"]))]
    assert sum("checked" in own for own in choices) == 1
    slider = elements.all("input", id="budget")[0]
    assert int(slider["max"]) == len(data["budgets"]) - 1
    assert all(len(places) == len(data["budgets"]) and set(places) <= set(range(len(data["pictures"])))
               for places in data["places"])
    options = {own["value"] for own in elements.all("option") if "label" not in own}
    assert options == {own["data-metric"] for own in elements.all("figure") if "data-metric" in own}
    assert len(elements.all("figure", hidden=None)) == 2 * (len(options) - 1)


def test_every_picture_decodes_and_every_film_has_a_frame_for_each_place_of_its_slider(elements):
    data = json.loads(elements.scripts["data"])
    shown = [picture["src"] for picture in data["pictures"] if picture["src"]]
    shown += [own["src"] for own in elements.all("img") if own.get("src")]
    frames = [frame for film in data["films"].values() for frame in film]
    assert len(shown) > 5 and frames
    assert all(decodes(uri) for uri in {*shown, *(uri for frame in frames for uri in frame["src"])})
    films = [own["data-film"] for _, own in elements.tags if "data-film" in own]
    assert sorted(films) == sorted(data["films"])
    assert all(picture["caption"] for picture in data["pictures"])
    assert all(len(frame["src"]) == len(frame["alt"]) and frame["text"] for frame in frames)
    tops = sorted(int(own["max"]) for own in elements.all("input", type="range") if own.get("id") != "budget")
    assert tops == sorted(len(film) - 1 for film in data["films"].values())


def test_the_policy_admits_its_own_script_and_nothing_from_elsewhere(elements):
    policy = next(own["content"] for own in elements.all("meta") if own.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(elements.scripts["code"].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not [own for _, own in elements.tags if re.match("(https?:)?//", own.get("src") or own.get("href") or "")]
    assert not [name for _, own in elements.tags for name in own if name.startswith("on")]


def test_names_of_a_user_are_text(of_pictures):
    text = (of_pictures[1] / "index.html").read_text()
    elements = Elements(text)
    assert EVIL not in text and "<img src=x" not in text and text.count("</script>") == 2
    assert not elements.all("b") and not elements.all("img", src="x")
