"""What `unchanged.py` runs in both checkouts: calls of `python main.py` that together pass through most of the code.

They are chosen to cover each SDE, network, parametrisation, weighting, sampler, estimator and checkpoint format, at a cost
of seconds each. What starts as zero learns fast, so that the results depend on all weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHORT = ("training.steps=12 training.batch_size=16 training.warmup=0 training.learning_rate=2e-3 training.ema_decay=0.9 "
         "training.eval_every=6 training.checkpoint_every=6 training.sample_every=0")
LONG = "training.decay=constant training.eval_every=100 training.checkpoint_every=100 training.sample_every=0"
SMALL = f"{SHORT} model.width=16 model.multipliers=(1,2) model.num_blocks=1 model.attention_resolutions=(8,)"
PICTURES = f"{SMALL} data.dataset=folder data.path={{data}}/pictures data.image_size=16 data.channels=3"
POINTS, DIGITS = f"vp_swiss_roll {SHORT}", f"vp_digits {SMALL}"
NCSNPP = f"ve_cifar10_ncsnpp {PICTURES} training.precision=fp32"

# The name of a run: its config, and the fields that differ.
RUNS = {
    "digits": "vp_digits training.steps=200 training.batch_size=32 training.sample_every=200 training.sample_steps=2",
    "roll": f"vp_swiss_roll {LONG} training.steps=200",
    "half_roll": f"vp_swiss_roll {LONG} training.steps=100",
    "ve": f"{POINTS} sde.name=ve model.parametrization=score model.time_input=sigma model.input_std=1.0",
    "subvp": f"{DIGITS} sde.name=subvp model.parametrization=v training.importance=False training.precision=fp32",
    "cosine": f"{POINTS} sde.name=cosine model.parametrization=x0 training.weighting=uniform training.importance=True",
    "sigmoid": f"{POINTS} sde.name=sigmoid sde.span=5.0 model.time_input=log_sigma training.weighting=uniform",
    "ddpm": f"{DIGITS} data.dequantize=False sde.name=ddpm sde.schedule=cosine sde.steps=20 model.time_input=index "
            "model.attention_head_dim=8 training.importance=False",
    "smld": f"{POINTS} data.dataset=gaussians8 sde.name=smld sde.steps=20 training.weighting=likelihood "
            "training.importance=True training.time_sampling=uniform",
    "edm": f"edm_cifar10 {SMALL} data.dataset=digits",
    "edm_vp": f"{POINTS} model.parametrization=edm model.input_std=1.0 model.time_input=c_noise training.weighting=edm",
    "unet": f"vp_cifar10 {PICTURES} training.decay=cosine",
    "ddpmpp": f"subvp_cifar10_ddpmpp {PICTURES} training.activation_checkpointing=True",
    "skips": f"ve_ffhq256_ncsnpp {PICTURES} model.attention_resolutions=() sde.sigma_max=20.0 training.importance=True",
    "ncsnpp": NCSNPP,
    "half_ncsnpp": f"{NCSNPP} training.steps=6",
}
RESUMED = ("roll", "ncsnpp")      # each from its half
# A run, a sampler and its options: every sampler as it is, then with options of its own.
SAMPLES = (
    "digits auto --steps=6", "digits ddim --steps=6", "digits dpm_solver --steps=6", "digits dpm_solver++ --steps=6",
    "digits unipc --steps=6", "digits edm --steps=4", "digits ode", "digits euler --steps=6", "digits heun --steps=4",
    "digits rk4 --steps=3", "digits euler_maruyama --steps=6", "digits ancestral --steps=6", "digits torchsde --steps=8",
    "digits reverse_diffusion --steps=6", "digits predictor_corrector --steps=4", "digits langevin --steps=3",
    "roll auto --steps=8 --order=4 --data_std=0.5 --nocorrect --grid=karras --denoise",
    "ve ddim --steps=6 --eta=0.5 --grid=logsnr",
    "subvp dpm_solver --steps=7 --order=3 --method=singlestep --noema",
    "cosine dpm_solver --steps=8 --order=3 --published --nolower_order_final --grid=uniform",
    "ve dpm_solver++ --steps=6 --method=sde --grid=quadratic",
    "sigmoid dpm_solver++ --method=adaptive --order=3 --rtol=0.1",
    "ddpm unipc --steps=6 --order=3 --prediction=noise --variant=bh1 --lower_order_final --grid=strided",
    "edm edm --steps=5 --churn=10 --s_min=0.05 --s_max=40 --s_noise=1.003",
    "roll ode --method=bosh3 --scaling=ve --rtol=1e-3 --atol=1e-3",
    "ddpmpp euler --steps=5 --scaling=ve --t_end=0.01 --precision=bf16",
    "edm_vp heun --steps=5 --scaling=ve --grid=sinh",
    "unet rk4 --grid=1,0.5,0.1",
    "cosine euler_maruyama --steps=6 --eta=0.5",
    "smld ancestral --steps=6 --variance=beta --grid=strided_leading",
    "ddpm reverse_diffusion --steps=6 --grid=strided_trailing --denoise",
    "ncsnpp predictor_corrector --steps=4 --predictor=ancestral --corrector=annealed --corrector_steps=2 --snr=0.1",
    "skips langevin --steps=3 --corrector=langevin --corrector_steps=2",
    "roll torchsde --steps=16 --method=milstein --eta=0.5",
)
# A run, and the options of an estimator.
LIKELIHOODS = (
    "roll --divergence=exact",
    "roll --clock=lambda --probes=2 --probe_kind=gaussian --rtol=1e-3 --atol=1e-3 --float64",
    "ve --method=dopri8 --divergence=exact --rtol=1e-2 --atol=1e-2",
    "digits --method=bosh3 --rtol=1e-2 --atol=1e-2 --images={data}/digits.npz",
    "digits --method=exponential --steps=10 --draws=2 --compare=train",
    "digits --estimator=elbo --bound_draws=4 --t_min=1e-3",
    "digits --estimator=chain_elbo --steps=8 --bound_draws=2",
    "ddpm --estimator=chain_elbo --variance=beta_tilde",
)
WORKDIR, IMPORTED = "--workdir={here}/run", "--workdir={here}/imported"
DRAW = "--mode=sample --num_samples=6 --batch_size=4 --seed=3"
SCORE = "--mode=likelihood --num_images=6 --batch_size=4 --seed=3"
SIZE = "--config.data.image_size=16"
# A run, the file or folder to write, and options; then what the command does that imports it.
CONVERTED = {
    "digits converted.safetensors": f"{DRAW} --steps=4",
    "unet converted_run --format=run": f"{DRAW} --steps=4",
    "unet diffusers --format=diffusers": f"{DRAW} --steps=4",
    "skips diffusers --format=diffusers --noema": f"{DRAW} --steps=4",
    "ddpmpp converted.pth": f"{DRAW} --steps=4 {SIZE} --config.sde.name=subvp",
    "ncsnpp converted.pth": f"--mode=train {SIZE} --config.data.dataset=folder --config.data.path={{data}}/pictures "
                            "--config.training.steps=18 --config.training.log_every=1 --config.training.sample_every=0",
}


@dataclass(frozen=True)
class Case:
    """A call of main.py in a folder of its own, {here}.

    name    its part of the workload, then what it does
    words   the command line; {data} is what `write_data` has written, {oracles} a folder of published checkpoints
    start   the case whose files are there already
    equals  the case that must have written the same
    """

    name: str
    words: str
    start: str = ""
    equals: str = ""

    @property
    def part(self) -> str:
        return self.name.split()[0]


def training(run: str) -> str:
    """The words that train a run."""
    config, *fields = RUNS[run].split()
    fields = [f"--config.{field}" for field in fields]
    return " ".join([f"--mode=train {WORKDIR} --config=configs/{config}.py --config.training.log_every=1", *fields])


def workload(oracles: Path) -> list[Case]:
    """All cases, each after the one that it starts from."""
    cases = [Case(f"train {run}", training(run)) for run in RUNS]
    cases += [Case(f"resume {run}", training(run), f"train half_{run}", f"train {run}") for run in RESUMED]
    for run, options in (line.split(maxsplit=1) for line in SAMPLES):
        cases.append(Case(f"sample {run} {options}", f"{DRAW} {WORKDIR} --sampler={options}", f"train {run}"))
    for run, options in (line.split(maxsplit=1) for line in LIKELIHOODS):
        cases.append(Case(f"likelihood {run} {options}", f"{SCORE} {WORKDIR} {options}", f"train {run}"))
    for line, words in CONVERTED.items():
        run, output = line.split(maxsplit=1)
        source = f"{IMPORTED} --checkpoint={{here}}/{output.split()[0]}"
        cases.append(Case(f"convert {line}", f"--mode=convert {WORKDIR} --output={{here}}/{output}", f"train {run}"))
        cases.append(Case(f"import {line}", f"{words} {source}", f"convert {line}"))
    for path in sorted(oracles.glob("*.pth")):
        source = f"{IMPORTED} --checkpoint={{oracles}}/{path.name}"
        cases.append(Case(f"import {path.name}", f"{DRAW} --steps=4 {SIZE} {source}"))
    return cases


def selected(cases: list[Case], parts: Sequence[str]) -> list[Case]:
    """The cases of some parts, and those that they need."""
    wanted: set[str] = set()
    for case in reversed(cases):
        if case.part in parts or case.name in wanted:
            wanted |= {case.name, case.start, case.equals}
    return [case for case in cases if case.name in wanted]


def write_data(folder: Path) -> None:
    """Write what the cases read: pictures of noise, and integer levels for --images."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / "pictures" / f"{i:02d}.png")
    np.savez(folder / "digits.npz", x=rng.integers(0, 17, (6, 1, 8, 8), np.uint8))
