"""The work of restoring: shared, resumed, and never that of another model, measurement or setting."""

import dataclasses

import pytest
import torch

from scorefield.evaluation.restoration import Restoration
from scorefield.evaluation.restore import Measured, restore, restored, with_noise
from scorefield.guidance.operators import make_operator
from scorefield.models import GaussianMixture
from scorefield.numerics.processes import World
from scorefield.numerics.stopping import Stopped
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE

MODEL = GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.04, 0.1]), torch.ones(2))
OPERATOR = make_operator("mask:half=right", (2,))
PROBLEM = Measured(OPERATOR, with_noise(torch.tensor([[0.9], [-0.2], [0.3], [1.1], [-1.0]]), 0.1), 0.1)
SAMPLERS = {"twisted_smc": make_sampler("twisted_smc", particles=4, steps=3), "adaptive": make_sampler("ode", rtol=1e-2)}


@pytest.fixture(params=SAMPLERS)
def work(request):
    return Restoration(MODEL, PROBLEM, SAMPLERS[request.param], "pigdm", samples=3, batch_size=8)


def killed_after(work, parts):
    """The work of a problem that a signal interrupts after so many of its parts."""
    class Killed(Measured):
        count = 0

        def given(self, model, rows, method):
            Killed.count += 1
            if Killed.count > parts + 1:      # the first one is that of the checks
                raise Stopped(2)
            return super().given(model, rows, method)

    return dataclasses.replace(work, problem=Killed(OPERATOR, PROBLEM.y, 0.1))


def fields(answers):
    return {name: value for name, value in vars(answers).items() if isinstance(value, torch.Tensor)}


def test_the_parts_are_the_same_to_the_bit_however_they_are_shared(work, tmp_path):
    alone = restore(MODEL, PROBLEM, work.sampler, "pigdm", 3, batch_size=8)
    for rank in (2, 1, 0):
        parts = work.begun(tmp_path, "digits")
        work.run(parts, World(rank, 3))
    shared = restored(work, parts)
    assert len(parts.units) > 1 and shared.evaluations == alone.evaluations and set(fields(shared)) == set(fields(alone))
    assert all(torch.equal(value, fields(alone)[name]) for name, value in fields(shared).items())


def test_a_killed_restoration_goes_on_and_says_what_is_kept(work, tmp_path):
    first = len(work.units[0])
    killed = killed_after(work, 1)
    of = f"{first} of {len(PROBLEM.y) if work.weighted else 15} {'measurements' if work.weighted else 'answers'} are done"
    with pytest.raises(Stopped, match=f"{of} and kept; the same command continues"):
        killed.run(killed.begun(tmp_path, "digits"))
    parts = work.begun(tmp_path, "digits")
    assert [parts.has(unit) for unit in parts.units] == [True] + [False] * (len(parts.units) - 1)
    work.run(parts)
    again, whole = restored(work, parts), restore(MODEL, PROBLEM, work.sampler, "pigdm", 3, batch_size=8)
    assert torch.equal(again.x, whole.x) and again.evaluations == whole.evaluations


def test_parts_of_another_identity_and_damaged_ones_are_made_again(work, tmp_path):
    parts = work.begun(tmp_path, "digits")
    work.run(parts)
    assert not any(work.begun(tmp_path, "others").has(unit) for unit in parts.units)
    path = tmp_path / f"{parts.units[1].start:08d}.npz"
    path.write_bytes(path.read_bytes()[:200])
    assert [work.begun(tmp_path, "digits").has(unit) for unit in parts.units] == [
        unit != parts.units[1] for unit in parts.units]


def test_the_identity_changes_with_all_that_answers_depend_on(work):
    problems = [dataclasses.replace(PROBLEM, **change) for change in (
        {"y": PROBLEM.y + 0.1}, {"noise_std": 0.2}, {"operator": make_operator("mask:half=left", (2,))})]
    others = [*(dataclasses.replace(work, problem=problem) for problem in problems),
              *(dataclasses.replace(work, **change) for change in ({"seed": 1}, {"samples": 2}, {"method": "tmpd"},
                                                                   {"batch_size": 4}))]
    digits = {one.identity_of("model") for one in [work, *others]} | {work.identity_of("other model")}
    assert len(digits) == len(others) + 2 and dataclasses.replace(work).identity_of("model") in digits
