"use strict";
// Everything the page shows is in it already; this only chooses what is seen. Text is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const budget = $("budget"), picture = $("picture"), missing = $("missing"), caption = $("caption");

function shownPicture(sampler, place) {
  return data.pictures[data.places[sampler][place]];
}

function setPicture(image, gap, shown) {
  const there = Boolean(shown.src);
  image.hidden = !there;
  if (gap) {
    gap.hidden = there;
    gap.textContent = there ? "" : shown.caption;
  }
  if (there) {
    image.src = shown.src;
  } else {
    image.removeAttribute("src");
  }
}

function chosenSampler() {
  return Number(document.querySelector("input[name=sampler]:checked").value);
}

// The picture of the chosen sampler at the budget of the slider, and the small ones of all samplers beside it.
function update() {
  const place = Number(budget.value), sampler = chosenSampler(), shown = shownPicture(sampler, place);
  const words = data.budgets[place];
  $("budget-text").textContent = words;
  budget.setAttribute("aria-valuetext", words);
  setPicture(picture, missing, shown);
  picture.alt = shown.alt;
  if (caption.textContent !== shown.caption) {
    caption.textContent = shown.src ? shown.caption : "";
  }
  document.querySelectorAll(".thumbs label").forEach((label, i) => {
    setPicture(label.querySelector("img"), label.querySelector(".missing"), shownPicture(i, place));
  });
  document.querySelectorAll("[data-pair]").forEach((mark) => {
    mark.classList.toggle("current", mark.dataset.pair === shown.pair);
  });
  document.querySelectorAll("[data-series]").forEach((line) => {
    line.classList.toggle("chosen", Number(line.dataset.series) === sampler);
  });
}

budget.addEventListener("input", update);
document.querySelectorAll("input[name=sampler]").forEach((input) => input.addEventListener("change", update));
update();

// One of several charts at a time: the metric that is asked for.
const metric = $("metric");
if (metric) {
  metric.addEventListener("change", () => {
    document.querySelectorAll("[data-metric]").forEach((chart) => {
      chart.hidden = chart.dataset.metric !== metric.value;
    });
  });
}

// Frames that a slider chooses: the denoising film and the score at several times. A film may have a button that plays it.
document.querySelectorAll("[data-film]").forEach((film) => {
  const frames = data.films[film.dataset.film], slider = film.querySelector("input[type=range]");
  const play = film.querySelector("button"), told = film.querySelector("output");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let timer = null;

  function show(at) {
    const frame = frames[at];
    slider.value = at;
    slider.setAttribute("aria-valuetext", frame.text);
    told.textContent = frame.text;
    film.querySelectorAll("img").forEach((image, i) => {
      image.src = frame.src[i];
      image.alt = frame.alt[i];
    });
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    if (play) {
      play.textContent = "Play";
    }
  }

  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });
  if (play) {
    play.hidden = false;
    play.addEventListener("click", () => {
      if (timer !== null) {
        stop();
        return;
      }
      let at = Number(slider.value) >= frames.length - 1 ? 0 : Number(slider.value);
      show(at);
      play.textContent = "Pause";
      timer = setInterval(() => {
        at += 1;
        show(at);
        if (at >= frames.length - 1) {
          stop();
        }
      }, calm.matches ? 1000 : 160);
    });
  }
});
