"""The page of a comparison in a real browser: no error, pictures that are there, controls that work, by keyboard, too."""

import re
from html.parser import HTMLParser

import pytest
from browser import Browser, found

from scorefield.evaluation.page import as_json, filled

from .conftest import EVIL, points

PICTURES = "[...document.images].filter(i => !i.hidden).map(i => i.naturalWidth)"
STATE = "({src: picture.src, caption: caption.textContent, budget: document.getElementById('budget-text').textContent})"


@pytest.fixture(scope="module")
def browser():
    if found() is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with Browser(found()) as browser:
        yield browser


@pytest.fixture(scope="module")
def of_points(tmp_path_factory):
    from pathlib import Path

    import numpy as np
    import torch

    from scorefield.evaluation import compare

    with np.load(Path(__file__).parents[2] / "oracles" / "gmm2_vp_linear.npz") as arrays:
        oracle = {key: torch.from_numpy(arrays[key]) for key in arrays}
    made = compare(*points(oracle, 400), ("auto", "ddim", "euler_maruyama"), (4, 8), n=200, bootstrap=50, likelihood=8,
                   metrics=("sliced_wasserstein", "energy"), progress=False)
    return made.write(tmp_path_factory.mktemp("of_points") / "compare")


def test_it_opens_without_an_error_and_without_a_request_that_leaves_it(browser, of_pictures, of_points):
    for page in (of_pictures[1] / "index.html", of_points):
        for width, height in ((360, 740), (1280, 900)):
            browser.open(page, width, height)
            widths = browser.run(PICTURES)
            assert len(widths) > 5 and min(widths) > 0
            assert browser.errors == []
            assert all(url.startswith(("data:", "file://")) and "x" != url[-1] for url in browser.requests)
            assert sum(url.startswith("file:") for url in browser.requests) == 1
            assert browser.run("document.documentElement.scrollWidth") <= width      # nothing to scroll sideways


def test_the_slider_changes_the_picture_and_what_is_said_of_it(browser, of_pictures):
    made, folder = of_pictures
    browser.open(folder / "index.html")
    browser.run("document.querySelector('input[name=sampler][value=\"0\"]').click()")
    seen = []
    for place, nfe in ((0, 3), (1, 6)):
        browser.run(f"budget.value = {place}; budget.dispatchEvent(new Event('input'))")
        state = browser.run(STATE)
        assert state["budget"] == f"{nfe} evaluations" and state["caption"].startswith(f"auto: {nfe} evaluations")
        assert browser.run("picture.decode().then(() => picture.naturalWidth)") > 0
        assert f"with {nfe} evaluations" in browser.run("picture.alt")
        seen.append(state["src"])
    assert seen[0] != seen[1]
    from base64 import b64decode

    assert b64decode(seen[1].partition(",")[2]) == (folder / "auto_6.png").read_bytes()
    assert browser.run("document.querySelectorAll('tr.current').length") == 1 and browser.errors == []


def test_everything_works_by_keyboard(browser, of_pictures):
    browser.open(of_pictures[1] / "index.html", 1280, 900)
    reached = []
    for _ in range(12):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.id || document.activeElement.name || "
                                   "document.activeElement.tagName"))
    assert reached[0] == "A" and {"budget", "sampler", "metric", "film-at"} <= set(reached), reached
    browser.run("document.querySelector('input[name=sampler]').focus()")
    browser.run("document.querySelector('input[name=sampler][value=\"0\"]').click()")
    browser.run("budget.focus()")
    browser.press("Home")
    first = browser.run(STATE)
    browser.press("ArrowRight")
    second = browser.run(STATE)
    assert first["budget"] == "3 evaluations" and second["budget"] == "6 evaluations" and first["src"] != second["src"]
    browser.run("document.querySelector('input[name=sampler]:checked').focus()")
    browser.press("ArrowDown")
    assert browser.run("chosenSampler()") == 1 and browser.run(STATE)["caption"].startswith("ddim:eta=0.5")
    outline = "getComputedStyle(document.querySelector('.thumbs label:has(:checked)')).outlineStyle"
    assert browser.run(outline) == "solid"      # the focus can be seen
    assert browser.errors == []


def test_a_pair_that_is_left_out_says_why_in_the_place_of_its_picture(browser, of_pictures):
    browser.open(of_pictures[1] / "index.html")
    browser.run("budget.value = 0; budget.dispatchEvent(new Event('input'))")
    browser.run("document.querySelector('input[name=sampler][value=\"2\"]').click()")
    assert browser.run("picture.hidden && !missing.hidden")
    assert "rk4 is left out here: its fewest evaluations are 4" in browser.run("missing.textContent")


def test_the_metric_can_be_chosen_and_the_film_plays(browser, of_pictures, of_points):
    browser.open(of_pictures[1] / "index.html")
    shown = "[...document.querySelectorAll('[data-metric]')].filter(f => !f.hidden).map(f => f.dataset.metric)"
    assert browser.run(shown) == ["sliced_wasserstein"] * 2
    browser.run("metric.value = 'error'; metric.dispatchEvent(new Event('change'))")
    assert browser.run(shown) == ["error"] * 2
    film = "document.querySelector('[data-film=film]')"
    assert browser.run(f"{film}.querySelector('button').hidden") is False
    before = browser.run(f"[...{film}.querySelectorAll('img')].map(i => i.src)")
    slider = f"{film}.querySelector('input')"
    browser.run(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
    noise = browser.run(f"[...{film}.querySelectorAll('img')].map(i => i.src)")
    assert all(a != b for a, b in zip(before, noise, strict=True)) and "t = 1" in browser.run(f"{film}.textContent")
    browser.run(f"{film}.querySelector('button').click()")
    browser.run("new Promise(done => setTimeout(done, 400))")
    assert browser.run(f"Number({slider}.value)") > 0
    browser.open(of_points)
    field = "document.querySelector('[data-film=field]')"
    a = browser.run(f"{field}.querySelector('img').src")
    slider = f"{field}.querySelector('input')"
    browser.run(f"{slider}.value = 1; {slider}.dispatchEvent(new Event('input'))")
    assert browser.run(f"{field}.querySelector('img').src") != a and browser.errors == []


def test_names_of_a_user_cannot_become_markup(browser, of_pictures):
    browser.open(of_pictures[1] / "index.html")
    assert browser.run("document.title") == EVIL and browser.run("document.querySelector('h1').textContent") == EVIL
    assert browser.run("document.querySelectorAll('img[onerror], b').length") == 0 and browser.errors == []
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run("document.title") == EVIL      # and the policy would stop it if one did
    text = (of_pictures[1] / "index.html").read_text()
    assert "<img src=x" not in text and text.count("</script>") == 2
    assert as_json({"x": "</script><!--"}) == r'{"x":"\u003c/script\u003e\u003c!--"}'
    assert filled("{{a}} {{b}}", {"a": "{{b}}", "b": "$1 \\1"}) == "{{b}} $1 \\1"


def test_less_motion_and_dark_pages_are_respected(browser, of_pictures):
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(of_pictures[1] / "index.html", dark=True)
    dark = browser.run(ground)
    browser.open(of_pictures[1] / "index.html", calm=True)
    assert dark != browser.run(ground)
    film = "document.querySelector('[data-film=film]')"
    slider = f"{film}.querySelector('input')"
    browser.run(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input')); {film}.querySelector('button').click()")
    browser.run("new Promise(done => setTimeout(done, 500))")
    assert browser.run(f"Number({slider}.value)") == 0      # a frame a second


def test_colours_have_enough_contrast(browser, of_pictures):
    """WCAG 2.1: text 4.5 to 1, symbols of charts 3 to 1, in both schemes."""
    code = """(() => {
      const number = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
      const light = (c) => { const [r, g, b] = number(c); return .2126 * r + .7152 * g + .0722 * b; };
      const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
      const probe = document.body.appendChild(document.createElement('i'));
      const colour = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
      const out = [];
      for (const ground of ['panel', 'ground', 'wash']) {
        for (const text of ['ink', 'soft', 'accent']) out.push([text, ground, 4.5, ratio(colour(text), colour(ground))]);
      }
      for (let i = 0; i < 8; i++) out.push(['c' + i, 'panel', 3, ratio(colour('c' + i), colour('panel'))]);
      return out;
    })()"""
    for dark in (False, True):
        browser.open(of_pictures[1] / "index.html", dark=dark)
        for name, ground, least, ratio in browser.run(code):
            assert ratio >= least, (dark, name, ground, ratio)


class Outline(HTMLParser):
    """What a screen reader needs: labels of controls, texts of pictures, levels of headings."""

    def __init__(self):
        super().__init__()
        self.ids, self.labels, self.inputs, self.images, self.headings, self.svgs, self.inside = [], set(), [], [], [], [], 0
        self.lang = None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "html":
            self.lang = attrs.get("lang")
        if tag == "label":
            self.labels.add(attrs.get("for"))
            self.inside += 1
        if tag in ("input", "select"):
            self.inputs.append((attrs.get("id"), self.inside > 0))
        if tag == "img":
            self.images.append(attrs)
        if tag == "svg":
            self.svgs.append(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        self.inside -= tag == "label"


def test_a_screen_reader_finds_labels_texts_and_headings(of_pictures, of_points):
    for page in (of_pictures[1] / "index.html", of_points):
        outline = Outline()
        outline.feed(page.read_text())
        assert outline.lang == "en" and len(outline.ids) == len(set(outline.ids))
        assert all(inside or name in outline.labels for name, inside in outline.inputs)
        assert all("alt" in image for image in outline.images)
        assert all(image["alt"] for image in outline.images if image.get("id") == "picture")
        assert all(svg.get("aria-hidden") == "true" or svg.get("aria-label") for svg in outline.svgs)
        assert outline.headings[0] == 1 and outline.headings.count(1) == 1
        assert all(b - a <= 1 for a, b in zip(outline.headings, outline.headings[1:], strict=False))
