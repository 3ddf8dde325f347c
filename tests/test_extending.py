"""Every example of docs/extending.md runs, is used as a user would use it, and takes the files and lines that it says."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import scorefield.checkpoints.load
import scorefield.cli.main
import scorefield.data.datasets
import scorefield.models.build
import scorefield.samplers
import scorefield.sde_lib
import scorefield.training.objectives  # noqa: F401
from scorefield.checkpoints import load_denoiser
from scorefield.models import GaussianMixture
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE
from scorefield.training import train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = {name: re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL) for name, text in SECTIONS.items()}
EXAMPLES = {name: blocks for name, blocks in EXAMPLES.items() if blocks}
# Two steps of a small network on points, in float32 on every machine.
SMALL = {"training.steps": 2, "training.batch_size": 32, "training.eval_every": 2, "training.sample_every": 0,
         "training.checkpoint_every": 2}
MLP = {"model.width": 8, "model.layers": 1}
ROLL = str(ROOT / "configs" / "vp_swiss_roll.py")


def as_words(fields):
    return [f"--config.{field}={value}" for field, value in fields.items()]


def module_name(file):
    return "scorefield." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def remembered(module):
    """What puts a module and its registries back as they are now."""
    names = dict(vars(module))
    entries = [(value, dict(value)) for name, value in names.items() if name.isupper() and isinstance(value, dict)]

    def restore():
        vars(module).clear()
        vars(module).update(names)
        for registry, content in entries:
            registry.clear()
            registry.update(content)

    return restore


@pytest.fixture
def extended(request, monkeypatch):
    """Do what an example says; the names of its modules, by the files' stems.

    A new file becomes a module, and lines of a file that exists run as if they stood at its end.
    """
    modules, restore = {}, []
    for file, code in EXAMPLES[request.param]:
        name = module_name(file)
        if (ROOT / file).exists():
            restore.append(remembered(sys.modules[name]))
        else:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        modules[Path(file).stem] = vars(sys.modules[name])
        exec(compile(code, file, "exec"), vars(sys.modules[name]))
    yield modules
    for put_back in restore:
        put_back()


def example(name):
    return pytest.mark.parametrize("extended", [name], indirect=True, ids=[""])


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_takes_the_files_and_lines_that_it_says(name):
    files = len(EXAMPLES[name])
    lines = sum(bool(line.strip()) for _, code in EXAMPLES[name] for line in code.splitlines())
    said = re.search(r"\*\*(\d) files?, (\d+) lines\.\*\*", SECTIONS[name])
    assert said is not None and (int(said[1]), int(said[2])) == (files, lines)
    assert files <= 2


def test_every_kind_of_change_is_there_and_in_the_table():
    kinds = ["An SDE", "A sampler", "A network", "A data set", "An objective", "A guidance", "A metric",
             "A checkpoint format", "A mode of the command line", "A flag"]
    assert list(EXAMPLES) == kinds
    rows = re.findall(r"^\| (.*?) \| (\d)", SECTIONS["What each kind of change takes"], re.MULTILINE)
    assert len(rows) == 13


@example("An SDE")
def test_the_sde_trains_by_its_config_section_and_samples(extended, tmp_path):
    run = train(ROLL, workdir=tmp_path / "run", overrides={"sde.name": "karras", "sde.sigma_max": 20.0} | MLP | SMALL,
                progress=False)
    model = load_denoiser(run)
    assert repr(model.sde) == "KarrasSDE(sigma_max=20.0)"
    result = make_sampler("auto", steps=8)(model, prior_sample(model.sde, (2,), seeds=range(4)))
    assert bool(result.x.isfinite().all()) and result.nfe == 8


@example("An SDE")
def test_the_sde_agrees_with_an_exact_model(extended):
    sde = extended["karras"]["KarrasSDE"](20.0)
    model = GaussianMixture(sde, torch.tensor([[0.5, -0.5]]), torch.tensor([0.25]))
    x = make_sampler("heun", steps=60, scaling="ve", grid="karras")(model, prior_sample(sde, (2,), range(4000))).x
    assert torch.allclose(x.mean(0), torch.tensor([0.5, -0.5]), atol=0.03)
    assert torch.allclose(x.std(0), torch.tensor([0.5, 0.5]), atol=0.02)


@example("A sampler")
def test_the_sampler_is_chosen_by_the_command_line_with_its_option(extended, command, points_run):
    code, out, error = command("--workdir", points_run, "--mode", "sample", "--sampler", "two_stage", "--stage", 1,
                               "--steps", 4, "--num_samples", 3)
    assert code == 0, error
    assert "3 samples by two_stage: 8 evaluations each" in out
    code, out, _ = command("--help")
    assert re.search(r"--stage +where a step has its second evaluation: .*\[two_stage 0.5\]", " ".join(out.split()))
    code, _, error = command("--workdir", points_run, "--mode", "sample", "--sampler", "ddim", "--stage", 1)
    assert code == 1 and "sampler 'ddim' takes no 'stage'" in error


@example("A sampler")
@pytest.mark.parametrize("stage", [0.5, 2 / 3, 1.0])
def test_the_sampler_has_order_two(extended, stage):
    model = GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.2, 0.1]))
    x_T = prior_sample(model.sde, (2,), range(8), dtype=torch.float64)
    exact = make_sampler("ode", rtol=1e-11, atol=1e-11, t_end=0.1)(model, x_T).x
    errors = [float((make_sampler("two_stage", steps=steps, stage=stage, grid="logsnr", t_end=0.1)(model, x_T).x
                     - exact).norm()) for steps in (100, 200)]
    assert 3.5 < errors[0] / errors[1] < 4.6


@example("A network")
def test_the_network_trains(extended, tmp_path):
    words = {"model.network": "sines", "model.width": 8, "model.frequency": 2.0}
    run = train(ROLL, workdir=tmp_path / "run", overrides=words | SMALL, progress=False)
    model = load_denoiser(run)
    assert isinstance(model.network, extended["sines"]["Sines"]) and model.network.frequency == 2.0
    assert model.score(torch.zeros(3, 2), 0.5).shape == (3, 2)


@example("A data set")
def test_the_data_set_is_named_by_the_command_line(extended, command, tmp_path):
    words = {"data.dataset": "moons", "data.size": 600, "data.width": 0.2} | MLP | SMALL
    code, out, error = command("--config", ROLL, "--mode", "train", "--workdir", tmp_path / "run", *as_words(words))
    assert code == 0, error
    assert "moons: 500 examples of shape (2,), 100 held out" in out
    code, _, error = command("--config", ROLL, "--mode", "train", "--config.data.dataset=moons", "--config.data.sise=6")
    assert code == 1 and "did you mean 'data.size'" in error


@example("A data set")
def test_the_data_set_labels_its_examples(extended):
    dataset = extended["datasets"]["moons"](600, width=0.0)
    x, condition = dataset.train[torch.arange(500)]
    centre = torch.where(condition["label"].bool(), 1.0, -1.0)[:, None] * torch.tensor([-0.5, -0.25])
    assert torch.allclose((x - centre).norm(dim=1), torch.ones(500))


@example("An objective")
def test_the_objective_trains_with_its_field(extended, command, tmp_path):
    words = {"training.objective": "huber", "training.scale": 0.05} | MLP | SMALL
    code, _, error = command("--config", ROLL, "--mode", "train", "--workdir", tmp_path / "run", *as_words(words))
    assert code == 0, error
    huber = extended["huber"]["Huber"](VPSDE(), scale=0.05)
    model = load_denoiser(tmp_path / "run")
    batch = extended["huber"]["Batch"](torch.zeros(2, 2))
    assert huber.loss(model, batch, (torch.full((2,), 0.5), torch.ones(2, 2))).shape == (2,)


@example("A guidance")
@pytest.mark.parametrize("sampler", ["dpm_solver++", "euler_maruyama"])
def test_the_guidance_runs_under_two_samplers(extended, sampler):
    model, weak = (GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0]]), torch.tensor([v])) for v in (0.1, 0.5))
    guided = extended["autoguidance"]["Autoguided"](model, weak, 1.0)
    make, seeds = make_sampler(sampler, steps=10), range(16)
    x_T = prior_sample(model.sde, (2,), seeds)
    result = make(guided, x_T, seeds)
    assert guided.evaluations == 2 and result.nfe == 20
    assert torch.allclose(result.x, make(model, x_T, seeds).x, atol=1e-5)      # scale 1 is the model itself
    for kind in ("score", "eps", "x0", "v", "flow"):
        assert torch.allclose(guided.predict(x_T, 0.5, kind), model.predict(x_T, 0.5, kind), atol=1e-5)


@example("A metric")
def test_the_metric_is_small_for_one_distribution_and_large_for_two(extended):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2000, 3, generator=generator)
    distance = extended["energy"]["energy_distance"]
    assert abs(distance(a, b)) < 0.01 < 0.3 < distance(a, b + 1)


@example("A checkpoint format")
def test_the_format_takes_a_checkpoint_there_and_back(extended, command, points_run, tmp_path):
    code, out, error = command("--workdir", points_run, "--mode", "convert", "--output", tmp_path / "roll.npz")
    assert code == 0, error
    assert "no step and no state of the optimiser" in out
    there, back = load_denoiser(points_run), load_denoiser(tmp_path / "roll.npz")
    assert all(torch.equal(a, b) for a, b in zip(there.parameters(), back.parameters(), strict=True))
    assert repr(there.sde) == repr(back.sde)
    (tmp_path / "roll.npz").write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match="is damaged"):
        load_denoiser(tmp_path / "roll.npz")


@example("A mode of the command line")
def test_the_mode_runs(extended, command, points_run):
    code, out, error = command("--workdir", points_run, "--mode", "moments", "--num_samples", 20)
    assert code == 0, error
    x = scorefield.data.datasets.swiss_roll().test[torch.arange(2000)][0].double()
    assert f"held out: mean {x.mean():.4f}" in out and "samples: mean" in out
    assert "Mode moments: prints the mean" in command("--help")[1]


@example("A flag")
def test_the_flag_changes_what_its_mode_does(extended, command, points_run):
    command("--workdir", points_run, "--mode", "sample", "--steps", 2, "--num_samples", 3)
    lines = {words: command("--workdir", points_run, "--mode", "report", *words)[1].splitlines()
             for words in ((), ("--only", "auto"))}
    assert len(lines[()]) > 3 == len(lines["--only", "auto"]) and "auto" in lines["--only", "auto"][2]
    code, _, error = command("--workdir", points_run, "--mode", "sample", "--only", "auto")
    assert code == 1 and "mode sample takes no only" in error


def test_the_registries_are_as_they_were():
    assert "karras" not in scorefield.sde_lib.SDES and "two_stage" not in scorefield.samplers.SAMPLERS
    assert "npz" not in scorefield.checkpoints.load.FORMATS and "moments" not in scorefield.cli.main.MODES


@pytest.fixture(scope="module")
def points_run(tmp_path_factory):
    """A run of two steps on the swiss roll."""
    return train(ROLL, workdir=tmp_path_factory.mktemp("points") / "run", overrides=MLP | SMALL, progress=False)
