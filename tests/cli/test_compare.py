"""Mode compare, as a user meets it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import made_once

from scorefield.cli.main import main

ROOT = Path(__file__).parents[2]
QUICK = ["--num_samples", 20, "--metrics", "sliced_wasserstein", "--likelihood_examples", 4, "--bootstrap", 50]
pytestmark = pytest.mark.one_machine


@pytest.fixture(autouse=True)
def statistics(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path / "data"))


@pytest.mark.slow
def test_it_writes_the_page_and_says_what_it_recommends(digits_run, command):
    code, out, err = command("--workdir", digits_run, "--mode", "compare", "--samplers", "auto,ddim:eta=0.5,rk4",
                             "--budgets", "3,5", *QUICK)
    assert code == 0, err
    folder = digits_run / "compare"
    stored = json.loads((folder / "results.json").read_text())
    assert [(row["sampler"], row["nfe"]) for row in stored["rows"]] == [
        ("auto", 3), ("auto", 5), ("ddim:eta=0.5", 3), ("ddim:eta=0.5", 5), ("rk4", 4)]
    assert "left out: rk4 with 3: its fewest evaluations are 4" in out and f"wrote {folder}/index.html" in out
    assert stored["recommendation"]["words"].split(": ")[0] in out.replace("\n", " ")
    page = (folder / "index.html").read_text()
    assert "Samplers on vp_digits" in page and "step_00000004" in page and 'id="film-title"' in page
    code, out, _ = command("--workdir", digits_run, "--mode", "report")
    assert code == 0 and "| comparison" in out and str(folder / "index.html") in out
    code, out, err = command("--workdir", digits_run, "--mode", "compare", "--samplers", "auto", "--budgets", "3",
                             "--seed", 1, "--noema", *QUICK)
    assert code == 0 and (digits_run / "compare_seed1_raw/auto_3.png").exists() and (folder / "rk4_5.png").exists(), err


@pytest.mark.slow
def test_a_run_whose_path_is_not_utf8_has_its_page(digits_run, command, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / os.fsdecode(b"caf\xe9"), ignore=shutil.ignore_patterns("compare*"))
    code, out, err = command("--workdir", run, "--mode", "compare", "--samplers", "auto", "--budgets", "3", *QUICK)
    assert code == 0, err
    assert "caf\\udce9" in (run / "compare" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("words, parts", [
    (["--samplers", "auto,,ddim"], ["--samplers"]), (["--samplers", "dim"], ["did you mean", "--samplers"]),
    (["--budgets", "5,x"], ["whole numbers", "--budgets"]), (["--budgets", "0"], ["--budgets"]),
    (["--budgets", "1", "--samplers", "rk4"], ["fewest evaluations are 4", "--budgets"]),
    (["--metrics", "fidd"], ["fid", "--metrics"]), (["--num_samples", "5"], ["at least 10", "--num_samples"]),
    (["--label", "3"], ["takes no label", "--label"]), (["--likelihood_examples", "-1"], ["--likelihood_examples"]),
    (["--steps", "5"], ["budgets 5,10,20", "--steps"]), (["--sampler", "auto"], ["samplers auto,ddim", "--sampler"]),
])
def test_what_does_not_fit_is_one_line_and_writes_nothing(digits_run, command, words, parts):
    before = sorted(digits_run.rglob("*"))
    quick = [word for i in range(0, len(QUICK), 2) if QUICK[i] not in words for word in QUICK[i:i + 2]]
    code, _, err = command("--workdir", digits_run, "--mode", "compare", *quick, *words)
    assert code == 1 and len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err, err
    assert before == sorted(digits_run.rglob("*"))


@pytest.fixture(scope="module")
def labelled_table(tmp_path_factory):
    """A run of two steps on a table of two columns whose scales differ by 1e5, with classes."""
    return made_once(tmp_path_factory, "labelled_table", train_on_a_table) / "run"


def train_on_a_table(folder):
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=120)
    income, rate = 5000 + 2000 * kind + 300 * rng.normal(size=120), 0.02 + 0.01 * kind + 0.003 * rng.normal(size=120)
    lines = [f"{a:.9g},{b:.9g},{'rich' if k else 'poor'}" for a, b, k in zip(income, rate, kind, strict=True)]
    (folder / "x.csv").write_text("\n".join(["income,rate,kind", *lines]) + "\n")
    main(["--config", str(ROOT / "configs/vp_table.py"), "--mode", "train", "--workdir", str(folder / "run"),
          f"--config.data.path={folder / 'x.csv'}", "--config.data.label=kind", "--config.model.classes=2",
          "--config.training.label_dropout=0.2", "--config.training.steps=2", "--config.training.warmup=0",
          "--config.training.batch_size=16", "--config.training.sample_every=1", "--config.training.sample_steps=2",
          "--config.training.precision=fp32"])


@pytest.mark.slow
def test_points_of_a_class_have_its_density_and_score_and_those_of_several_classes_have_none(labelled_table, command):
    table = ["--workdir", labelled_table, "--mode", "compare", "--samplers", "auto", "--budgets", "3", *QUICK]
    code, _, err = command(*table, "--label", "rich")
    assert code == 0, err
    folder = labelled_table / "compare_label_1"
    page = (folder / "index.html").read_text()
    assert "Density of the model&#x27;s flow given class rich" in page and (folder / "score_0.png").exists()
    code, _, err = command(*table, "--label", "all")
    assert code == 0, err
    folder = labelled_table / "compare_label_all"
    assert "No density and no score are shown: the samples are of 2 classes" in (folder / "index.html").read_text()
    assert not (folder / "density.png").exists() and (folder / "paths.svg").exists()
    code, _, err = command(*table)
    assert code == 0 and "given class" not in (labelled_table / "compare" / "index.html").read_text(), err
    code, _, err = command(*table, "--label", "0", "--guidance", 2, "--budgets", "6")
    assert code == 0 and (labelled_table / "compare_label_0_guidance_2" / "score_0.png").exists(), err


RESTORE = ["--operator", "mask:half=right", "--measurement", "data", "--noise", 0.1]


def test_restorations_are_compared_by_method_and_sampler(digits_run, command):
    code, out, err = command("--workdir", digits_run, "--mode", "compare", *RESTORE, "--num_images", 3, "--methods",
                             "ddnm,pigdm:data_std=0.5", "--samplers", "twisted_smc:particles=4,ddim", "--budgets", "16",
                             "--samples", 2, "--bootstrap", 20)
    assert code == 0, err
    folder = digits_run / "compare_restorations_data_mask-halfright_noise0.1_num_images3"
    record = json.loads((folder / "results.json").read_text())
    assert [row["sampler"] for row in record["rows"]] == [
        f"{method} by {sampler}" for sampler in ("twisted_smc:particles=4", "ddim")
        for method in ("ddnm", "pigdm:data_std=0.5")]
    assert record["facts"]["operator"] == "mask:half=right" and f"wrote {folder / 'index.html'}" in out
    code, out, _ = command("--workdir", digits_run, "--mode", "report")
    assert code == 0 and "4 rows of a method, a sampler and a budget, 3 measurements each" in out


@pytest.mark.parametrize("words, says", [
    (["--noise", 0.1], "noise belongs to restorations"), ([*RESTORE, "--num_samples", 9], "compared without num_samples"),
    ([*RESTORE, "--features", "digits"], "compared without features"), ([*RESTORE, "--compile"], "which a compiled network"),
    ([*RESTORE, "--methods", "guess"], "unknown method"),
    ([*RESTORE, "--samples", 1], "at least 2 answers"), (["--operator", "mask"], "give what is to be restored"),
    ([*RESTORE, "--metrics", "fid"], "unknown metric 'fid' of restorations")])
def test_what_does_not_belong_to_restorations_is_refused(digits_run, command, words, says):
    code, _, err = command("--workdir", digits_run, "--mode", "compare", *words)
    assert code == 1 and says in err and err.count("\n") == 1, err
