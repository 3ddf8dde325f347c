"""Students of the digits' teacher: `python -m benchmarks.students [--runs runs] [--updates 800] [--samples 1500]`.

Trains configs/digits_teacher.py, its progressive students from 32 steps to 1, and the consistency models of
configs/digits_consistency.py and configs/digits_scm.py, each once, and prints for every number of evaluations, of DDIM by
the teacher and of each student:

    distance  of samples to the end of the teacher's flow from the same starts (60 steps of auto), with labels in turn: the
              median over 256 starts
    Frechet   distance to the training digits in the features of the project's classifier, of samples of all labels

--updates are those of each stage of progressive distillation; the consistency models have those of their configs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from scorefield.checkpoints import load_denoiser
from scorefield.data import load_dataset, make_codec
from scorefield.evaluation import evaluate
from scorefield.models import Denoiser
from scorefield.samplers import Sampler, make_sampler, prior_sample, sample_seeds

ROOT = Path(__file__).parents[1]
STAGES, DDIM, FEW, STARTS = (32, 16, 8, 4, 2, 1), (64, 16, 8, 4, 2, 1), (1, 2, 4), 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--samples", type=int, default=1500)
    asked = parser.parse_args()
    teacher = trained("digits_teacher", asked.runs / "digits_teacher")
    rows: list[tuple[str, Denoiser, Sampler]] = [("DDIM", teacher, make_sampler("ddim", steps=n)) for n in DDIM]
    before = asked.runs / "digits_teacher"
    for steps in STAGES:
        run = asked.runs / f"student_{steps}"
        model = trained("digits_progressive", run, f"--config.training.teacher={before}",
                        f"--config.training.student_steps={steps}", f"--config.training.steps={asked.updates}")
        rows.append(("progressive", model, make_sampler("ddim", steps=steps, grid="uniform")))
        before = run
    for config in ("digits_consistency", "digits_scm"):
        model = trained(config, asked.runs / config, f"--config.training.teacher={asked.runs / 'digits_teacher'}")
        rows += [(config, model, make_sampler("consistency", steps=n)) for n in FEW]
    print("| method | evaluations | distance | Frechet |\n|---|---|---|---|")
    found = []
    for name, model, sampler in rows:
        distance, frechet, floor = figures(teacher, model, sampler, asked.samples)
        found.append({"method": name, "evaluations": vars(sampler)["steps"], "distance": distance, "frechet": frechet})
        print(f"| {name} | {vars(sampler)['steps']} | {distance:.3f} | {frechet:.3f} |", flush=True)
    print(f"Frechet distance of the held-out digits: {floor:.3f}")
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "students.json").write_text(json.dumps(found, indent=2) + "\n")


def trained(config: str, run: Path, *more: str) -> Denoiser:
    """The model of a run, which is trained unless that is done."""
    subprocess.run([sys.executable, str(ROOT / "main.py"), "--config", str(ROOT / f"configs/{config}.py"), "--mode", "train",
                    "--workdir", str(run), *more], check=True, stdout=subprocess.DEVNULL)
    return load_denoiser(run).eval()


@torch.no_grad()
def figures(teacher: Denoiser, model: Denoiser, sampler: Sampler, samples: int) -> tuple[float, float, float]:
    """The distance to the teacher's flow, the Frechet distance, and its floor."""
    seeds, label = sample_seeds(1, 0, STARTS), torch.arange(STARTS) % 10
    x_T = prior_sample(teacher.sde, (1, 8, 8), seeds)
    end = make_sampler("auto", steps=60)(teacher.given(label=label), x_T).x
    x = sampler(model.given(label=label), x_T, seeds).x
    quality = evaluate(model, load_dataset({"dataset": "digits"}), make_codec(17, dequantize=True), n=samples, label="all",
                       metrics=["fid"], progress=False, bootstrap=0, sampler=sampler)
    fid = quality.figures["fid"]
    assert fid.floor is not None
    return float((x - end).flatten(1).square().mean(1).sqrt().median()), fid.value, fid.floor


if __name__ == "__main__":
    main()
