"""Many samples: shared, resumed, extended, and never those of another model or other settings."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import make_codec
from scorefield.evaluation import generate
from scorefield.evaluation.generate import begin
from scorefield.evaluation.names import name_of_place, stem_of_samples, whole
from scorefield.evaluation.pictures import write_pictures
from scorefield.evaluation.sample_set import find_stored
from scorefield.models import GaussianMixture
from scorefield.numerics.processes import World
from scorefield.numerics.stopping import Stopped
from scorefield.samplers import SAMPLERS, make_sampler
from scorefield.sde_lib import VPSDE

ROOT = Path(__file__).parents[2]
MODEL = GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.04, 0.1]), torch.ones(2))
ADAPTIVE = make_sampler("ode", rtol=1e-3, atol=1e-3)      # whose steps depend on the batch
CODEC = make_codec(None)


def draw(n=10, folder=None, sampler=ADAPTIVE, model=MODEL, **more):
    return generate(model, sampler, (2,), CODEC, n, batch_size=4, folder=folder,
                    **{"progress": False} | ({} if folder is None else {"identity": "model 1"}) | more)


def x_of(samples):
    return samples.first(10**6)[0]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def no_model(batch):
    raise AssertionError(f"drew {batch}")


def test_the_set_is_the_same_to_the_bit_however_it_is_shared(tmp_path):
    alone = draw()
    for rank in (2, 1, 0):
        shared = draw(folder=tmp_path, world=World(rank, 3))
    assert torch.equal(x_of(alone), x_of(shared)) and len(shared) == 10
    assert shared.nfe == alone.nfe and files(tmp_path) == ["00000000.npz", "00000004.npz", "00000008.npz"]


def test_a_killed_command_goes_on_and_says_what_is_kept(tmp_path):
    def killed(batch):
        if batch.start == 8:
            raise KeyboardInterrupt
        return MODEL

    with pytest.raises(KeyboardInterrupt, match="8 of 10 samples are done and kept; the same command continues"):
        draw(folder=tmp_path, model=killed)
    drawn = []
    again = draw(folder=tmp_path, model=lambda batch: drawn.append(batch) or MODEL)
    assert set(drawn) == {range(8, 10)} and torch.equal(x_of(again), x_of(draw()))


def test_an_interruption_before_anything_new_says_what_was_there(tmp_path, monkeypatch):
    def interrupted(*words, **more):
        raise Stopped(signal.SIGINT)

    draw(8, folder=tmp_path)
    monkeypatch.setattr(sys.modules["scorefield.evaluation.generate"], "print", interrupted, raising=False)
    with pytest.raises(Stopped, match="8 of 10 samples are done and kept; the same command continues from there"):
        draw(folder=tmp_path, progress=True)


@pytest.mark.parametrize("other", [{"identity": "model 2"}, {"seed": 1}, {"sampler": make_sampler("ode", rtol=1e-2)}])
def test_samples_of_another_model_or_setting_are_never_taken(tmp_path, other):
    draw(folder=tmp_path)
    with pytest.raises(AssertionError, match=r"drew range\(0, 4\)"):
        draw(folder=tmp_path, model=no_model, **other)


@pytest.mark.parametrize("damage", [lambda content: content[:200], lambda content: content[:-300] + b"?" + content[-299:],
                                    lambda content: b""])
def test_a_damaged_batch_is_drawn_again(tmp_path, damage):
    before = x_of(draw(folder=tmp_path))
    file = tmp_path / "00000004.npz"
    file.write_bytes(damage(file.read_bytes()))
    drawn = []
    again = draw(folder=tmp_path, model=lambda batch: drawn.append(batch) or MODEL)
    assert set(drawn) == {range(4, 8)} and torch.equal(x_of(again), before)


def edited(path, name, change):
    """The file of arrays with one of them changed, as NumPy writes it: its own checksums are right."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(path, **arrays | {name: change(arrays[name])})


@pytest.mark.parametrize("name", ["x", "nfe", "seconds"])
def test_an_edited_batch_is_drawn_again_and_an_edited_set_is_not_taken(tmp_path, name):
    samples = draw(folder=tmp_path / "parts")
    samples.write(tmp_path / "all.npz")
    edited(tmp_path / "parts" / "00000004.npz", name, lambda v: v + 1)
    drawn = []
    draw(folder=tmp_path / "parts", model=lambda batch: drawn.append(batch) or MODEL)
    assert set(drawn) == {range(4, 8)}
    assert find_stored(tmp_path / "all.npz", samples.identity, 4) is not None
    with np.load(tmp_path / "all.npz") as file:
        unsealed = {key: file[key] for key in file.files if key != "seal"}
    edited(tmp_path / "all.npz", name, lambda v: v + 1)
    assert find_stored(tmp_path / "all.npz", samples.identity, 4) is None
    np.savez(tmp_path / "all.npz", **unsealed)      # of an earlier version
    assert find_stored(tmp_path / "all.npz", samples.identity, 4) is not None


def test_a_process_that_comes_late_draws_nothing_that_was_there(tmp_path):
    """The first process is done, and has removed the batches, before the second one begins to draw."""
    whole_set = draw(folder=tmp_path / "parts")
    late = begin(10, whole_set.identity, 4, tmp_path / "parts", None)      # what it saw when the processes met
    shutil.rmtree(tmp_path / "parts")
    draw(folder=tmp_path / "parts", model=no_model, world=World(1, 2), begun=late)
    assert not (tmp_path / "parts").exists()


def test_a_finished_set_is_one_file_from_which_more_samples_go_on(tmp_path):
    few = draw(folder=tmp_path / "parts")
    few.write(tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as arrays:
        assert arrays.files[0] == "x" and np.array_equal(arrays["x"], x_of(few).numpy())
        assert arrays["nfe"].mean() == few.nfe and arrays["seconds"].sum() == pytest.approx(few.seconds)
    stored, drawn = find_stored(tmp_path / "all.npz", few.identity, 4), []
    more = draw(14, tmp_path / "more", stored=stored, model=lambda batch: drawn.append(batch) or MODEL)
    assert set(drawn) == {range(8, 12), range(12, 14)}      # the batch that was cut short is drawn whole
    assert torch.equal(x_of(more), x_of(draw(14)))
    less = draw(8, tmp_path / "less", stored=stored, model=no_model)
    assert torch.equal(x_of(less), x_of(draw(8)))
    with pytest.raises(AssertionError, match=r"drew range\(4, 6\)"):      # of an adaptive solver, this batch is another
        draw(6, tmp_path / "other", stored=stored, model=no_model)
    content = (tmp_path / "all.npz").read_bytes().replace(x_of(few).numpy().tobytes()[:8], b"12345678")
    (tmp_path / "all.npz").write_bytes(content)
    assert find_stored(tmp_path / "all.npz", few.identity, 4) is None      # damaged
    assert find_stored(tmp_path / "none.npz", few.identity, 4) is None


def test_writing_a_set_takes_the_memory_of_a_batch_not_of_all(tmp_path):
    """16 MiB of samples are written within 6 MiB of new memory."""
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from scorefield.evaluation.sample_set import Batch, SampleSet\n"
        "folder = Path(sys.argv[1]); units = [(i, i + 4) for i in range(0, 128, 4)]; s = SampleSet(units, 'x', folder)\n"
        "for u in units: s.add(u, Batch(torch.full((4, 2, 128, 128), u[0], dtype=torch.float32), None, 1.0, 0.1))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; s.write(folder / 'all.npz')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 6 * 1024 and (tmp_path / "all.npz").stat().st_size > 16 * 2**20


def test_a_disk_that_fills_is_an_error_of_one_line_and_leaves_whole_files(tmp_path):
    """A limit of the size of files stands for the disk: the set is larger, a batch is not."""
    samples = draw(600, tmp_path, make_sampler("auto", steps=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(OSError, match=r"all\.npz") as caught:
            samples.write(tmp_path / "all.npz")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match="600 of 700 samples are done and kept; the same command continues from there"):
            draw(700, tmp_path, make_sampler("auto", steps=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value) and len(files(tmp_path)) == 150      # no .npz of all, and nothing temporary


def test_samples_that_are_not_finite_say_what_is_kept(tmp_path):
    broken = GaussianMixture(VPSDE(), torch.tensor([[float("nan"), 0.0]]), torch.ones(1), torch.ones(1))
    with pytest.raises(ArithmeticError, match=r"not finite.*; 4 of 10 samples are done and kept") as caught:
        draw(folder=tmp_path, sampler=make_sampler("auto"), model=lambda batch: MODEL if batch.start == 0 else broken)
    assert "nothing was kept" not in str(caught.value)


def test_names_say_each_setting_and_never_collide():
    assert stem_of_samples("auto", make_sampler("auto")) == "auto"
    assert stem_of_samples("auto", make_sampler("auto", steps=30), "_label_all_guidance_2.5", seed=3, ema=False,
                           precision="bf16", step=400, batch_size=16) == (
                               "auto_steps30_label_all_guidance_2.5_seed3_batch_size16_raw_bf16_step00000400")
    assert stem_of_samples("dpm_solver++", make_sampler("dpm_solver++", order=3, lower_order_final=False)
                           ) == "dpm_solver++_order3_nolower_order_final"
    stems = {}
    for name, kind in SAMPLERS.items():
        options = [{}, {"t_end": 0.01}, {"t_end": 0.011}]
        options += [{"denoise": True}, {"t_end": 0.01, "denoise": True}] if name not in ("edm", "restart") else []
        options += [{"steps": steps} for steps in (8, 64)] if "steps" in {field.name for field in fields(kind)} else []
        for given in options:
            stem = stem_of_samples(name, make_sampler(name, **given))
            assert stems.setdefault(stem, (name, given)) == (name, given)
    long = [whole("a" * 300), whole("a" * 301), whole("é" * 150)]
    assert len(set(long)) == 3 and all(len(os.fsencode(stem)) <= 200 for stem in long)


def test_a_place_has_a_name_of_its_own_that_any_system_takes(tmp_path):
    places = [tmp_path / "a/set.npz", tmp_path / "b/set.npz", tmp_path / os.fsdecode(b"\xff.npz"), tmp_path / ".x", tmp_path]
    names = [name_of_place(place) for place in places]
    assert len(set(names)) == 5 and names[0].startswith("set_")
    assert all(name.isascii() and "/" not in name and not name.startswith(".") for name in names)


def test_pictures_are_files_with_padded_numbers_in_a_folder_for_each_class(tmp_path):
    x = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 2, 3).contiguous()
    names = ("cat", "../dog", "CAT", "bird")
    batches = [(x[:4], torch.tensor([3, 1, 0, 2])), (x[4:], torch.tensor([3, 1]))]
    assert write_pictures(tmp_path / "p", batches, 6, names) == 6
    found = {str(path.relative_to(tmp_path / "p")): int(np.asarray(Image.open(path))[0, 0])
             for path in (tmp_path / "p").rglob("*.png")}
    assert found == {"bird/00000000.png": 0, "1/00000001.png": 51, "0/00000002.png": 102, "2/00000003.png": 153,
                     "bird/00000004.png": 204, "1/00000005.png": 255}
    assert write_pictures(tmp_path / "p", [(x[:1], None)], 6) == 1 and files(tmp_path / "p") == ["00000000.png"]
    (tmp_path / "p/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        write_pictures(tmp_path / "p", [(x, None)], 6)
    assert files(tmp_path) == ["p"] and (tmp_path / "p/notes.txt").read_text() == "mine"


def test_pictures_that_fail_leave_the_folder_as_it_was(tmp_path):
    x = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    write_pictures(tmp_path / "p", [(x, None)], 256)

    def failing():
        yield x, None
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_pictures(tmp_path / "p", failing(), 256)
    assert files(tmp_path) == ["p"] and files(tmp_path / "p") == ["00000000.png"]
