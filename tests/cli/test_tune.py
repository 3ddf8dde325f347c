"""Mode tune on a run: what it writes, and who may use it."""

import json
import shutil

import numpy as np
import pytest

from scorefield.cli.main import main
from scorefield.numerics.errors import ArgumentError
from tests.cli.test_students import train

pytestmark = pytest.mark.one_machine
QUICK = ["--num_starts", "16", "--dense", "12"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = train("digits_teacher", tmp_path_factory.mktemp("tune") / "run")
    main(["--workdir", str(run), "--mode", "tune", "--steps", "4,5", *QUICK])
    return run


def sample(run, *more):
    main(["--workdir", str(run), "--mode", "sample", "--num_samples", "3", *more])


def test_a_tuned_solver_lies_in_the_run_says_what_it_was_made_from_and_is_used(run):
    stored = json.loads((run / "solvers/auto_5.json").read_text())
    made_from = stored["made_from"]
    assert len(stored["times"]) == 6 and len(stored["rules"]) == 5 and (run / "solvers/auto_4.json").exists()
    assert made_from["evaluations"] == 16 * (13 + 7 * 5) and made_from["chosen"] in made_from["figures"]
    assert {"weights", "sde", "model", "guidance", "labelled"} <= set(made_from["of"])
    sample(run, "--sampler", "tuned", "--steps", "5")
    record = json.loads((run / "samples/tuned_steps5.json").read_text())
    assert record["nfe"] == 5 and record["sampler"] == "tuned" and record["settings"]["steps"] == 5
    first = np.load(run / "samples/tuned_steps5.npz")["x"]
    sample(run, "--sampler", "tuned", "--steps", "5", "--solver", str(run / "solvers/auto_5.json"))
    other, = (run / "samples").glob("tuned_steps5_solver*.npz")
    assert np.array_equal(first, np.load(other)["x"])


def test_a_solver_of_other_steps_guidance_or_weights_is_refused_in_one_line(run, tmp_path):
    for more, words in ((["--steps", "7"], "there is no tuned solver .*auto_7.json; make it with mode tune, steps 7"),
                        (["--steps", "5", "--label", "3"], "there is no tuned solver .*auto_5_labels.json"),
                        (["--steps", "5", "--noema"], "there is no tuned solver .*auto_5_raw.json"),
                        (["--steps", "5", "--denoise"], "has its own denoise; leave that out"),
                        (["--steps", "5", "--label", "3", "--solver", str(run / "solvers/auto_5.json")],
                         "tuned for another model or guidance: its labelled differ")):
        with pytest.raises(ArgumentError, match=words):
            sample(run, "--sampler", "tuned", *more)
    other = train("digits_teacher", tmp_path / "other", "--config.training.seed=5")
    shutil.copytree(run / "solvers", other / "solvers")
    with pytest.raises(ArgumentError, match="its weights differ; tune one with mode tune"):
        sample(other, "--sampler", "tuned", "--steps", "5")


def test_a_solver_under_guidance_draws_every_label_of_its_scale(run):
    guided = ["--guidance", "2"]
    main(["--workdir", str(run), "--mode", "tune", "--steps", "3", *QUICK, "--label", "all", *guided])
    made = json.loads((run / "solvers/auto_3_labels_guidance_2.json").read_text())["made_from"]
    assert made["evaluations"] == 2 * 16 * (13 + 7 * 3)
    sample(run, "--sampler", "tuned", "--steps", "3", "--label", "7", *guided)
    with pytest.raises(ArgumentError, match="there is no tuned solver .*guidance_3"):
        sample(run, "--sampler", "tuned", "--steps", "3", "--label", "7", "--guidance", "3")


def test_budgets_that_cannot_be_tuned_are_refused(run):
    for more, words in ((["--steps", "1"], "steps must lie in 2 .. 6"), (["--steps", "4,40"], "steps must lie in 2 .. 6"),
                        (["--steps", "4.5"], "steps must be whole numbers")):
        with pytest.raises(ArgumentError, match=words):
            main(["--workdir", str(run), "--mode", "tune", *QUICK, *more])
    with pytest.raises(ArgumentError, match="num_starts must lie in 16"):
        main(["--workdir", str(run), "--mode", "tune", "--num_starts", "4"])


def test_statistics_lie_in_the_run_serve_every_number_of_steps_and_are_refused_elsewhere(run, tmp_path):
    main(["--workdir", str(run), "--mode", "tune", "--sampler", "dpm_solver_v3", *QUICK])
    path = run / "solvers/dpm_solver_v3.npz"
    made = json.loads(str(np.load(path)["made_from"]))
    assert made["evaluations"] == 16 * (4 * 12 + 3) and {"weights", "sde", "guidance"} <= set(made["of"])
    for steps in ("4", "9"):
        sample(run, "--sampler", "dpm_solver_v3", "--steps", steps, "--order", "2")
        record = json.loads((run / f"samples/dpm_solver_v3_steps{steps}_order2.json").read_text())
        assert record["nfe"] == int(steps) and record["settings"]["order"] == 2 and "made" not in record["settings"]
    for more, words in ((["--label", "3"], "there are no statistics .*dpm_solver_v3_labels.npz; make them"),
                        (["--label", "3", "--statistics", str(path)], "its labelled differ"),
                        (["--order", "4"], "order must lie between 1 and 3")):
        with pytest.raises(ArgumentError, match=words):
            sample(run, "--sampler", "dpm_solver_v3", *more)
    with pytest.raises(ArgumentError, match="steps belongs to sampler auto"):
        main(["--workdir", str(run), "--mode", "tune", "--sampler", "dpm_solver_v3", "--steps", "5", *QUICK])


@pytest.mark.slow
def test_compare_takes_the_tuned_solver_of_each_budget_and_the_statistics(run):
    main(["--workdir", str(run), "--mode", "tune", "--sampler", "dpm_solver_v3", *QUICK])
    main(["--workdir", str(run), "--mode", "compare", "--samplers", "auto,tuned,dpm_solver_v3:order=2", "--budgets", "3,5,9",
          "--num_samples", "20", "--metrics", "sliced_wasserstein", "--likelihood_examples", "0", "--bootstrap", "0"])
    stored = json.loads((run / "compare/results.json").read_text())
    rows = [(row["sampler"], row["nfe"]) for row in stored["rows"]]
    assert rows == [("auto", 3), ("auto", 5), ("auto", 9), ("tuned", 5), *[("dpm_solver_v3:order=2", n) for n in (3, 5, 9)]]
    reasons = {(*(out[key] for key in out if key != "reason"),): out["reason"] for out in stored["left_out"]}
    assert "there is no tuned solver" in reasons["tuned", 3] and "takes the same 5 evaluations" in reasons["tuned", 9]


@pytest.mark.slow
def test_a_solver_for_restoring_serves_its_operator_and_method_alone(run):
    half = ["--operator", "mask:half=right", "--method", "pigdm", "--noise", "0.1"]
    main(["--workdir", str(run), "--mode", "tune", "--steps", "4", "--num_images", "2", *QUICK, *half])
    made = json.loads((run / "solvers/auto_4_mask-halfright_pigdm_noise0.1.json").read_text())["made_from"]
    assert made["of"]["restoring"]["operator"] == "mask:half=right"
    restore = ["--workdir", str(run), "--mode", "restore", "--measurement", "data", "--num_images", "2", "--samples", "2",
               "--sampler", "tuned", "--steps", "4"]
    main([*restore, *half])
    record, = (json.loads(path.read_text()) for path in (run / "restore").glob("*.json"))
    assert record["sampler"] == "tuned" and record["evaluations"] == 8
    with pytest.raises(ArgumentError, match="there is no tuned solver .*grey_pigdm_noise0.1"):
        main([*restore, "--operator", "grey", *half[2:]])
    with pytest.raises(ArgumentError, match="measurement belongs to operator"):
        main(["--workdir", str(run), "--mode", "tune", "--measurement", "data", *QUICK])
    with pytest.raises(ArgumentError, match="mode restore takes no guidance"):
        main(["--workdir", str(run), "--mode", "tune", "--guidance", "2", *QUICK, *half])
