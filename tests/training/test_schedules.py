"""Learning-rate schedules against their formulas, and their continuation when a run is extended."""

import math

import pytest

from scorefield.configs.sections import training
from scorefield.numerics.errors import ArgumentError
from scorefield.training.schedules import SCHEDULES, Cooldown, InverseSquareRoot, LearningRate

OWN = {"inverse_sqrt": {"reference": 30}, "cooldown": {"cooldown": 40}}


def rates(decay, steps=100, warmup=10, **settings):
    own = OWN.get(decay, {}) | settings
    return LearningRate(training(decay=decay, steps=steps, warmup=warmup, learning_rate=2.0, **own))


def going_on(before, step, decay, steps, **settings):
    """The schedule of a run that stopped after `step` updates and goes on with other settings."""
    after = rates(decay, steps, **settings)
    after.restore(before.state(step), step)
    return after


@pytest.mark.parametrize("decay", SCHEDULES)
def test_every_schedule_warms_up_linearly(decay):
    assert [rates(decay)(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])


def test_the_cosine_is_at_its_half_in_the_middle_and_at_zero_after_the_last_update():
    rate = rates("cosine", steps=110)
    assert [rate(10), rate(60), rate(110)] == pytest.approx([2.0, 1.0, 0.0])
    assert rate(35) == pytest.approx(1 + math.cos(math.pi / 4))


def test_the_inverse_square_root_is_constant_until_its_reference():
    rate = rates("inverse_sqrt")
    assert [rate(step) for step in (10, 30, 120, 3000)] == pytest.approx([2.0, 2.0, 1.0, 0.2])


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_the_cooldown_falls_over_the_last_updates_alone(shape, half):
    rate = rates("cooldown", cooldown_shape=shape)
    assert [rate(step) for step in (10, 60, 80, 100)] == pytest.approx([2.0, 2.0, 2 * half, 0.0])


@pytest.mark.parametrize("decay", SCHEDULES)
@pytest.mark.parametrize("at", [0, 4, 10, 50, 75, 99])
@pytest.mark.parametrize("steps", [100, 130, 1000])
def test_a_run_with_more_steps_goes_on_without_a_jump(decay, at, steps):
    before = rates(decay)
    after = going_on(before, at, decay, steps)
    ended = before(at) < 1e-3 * 2.0      # then the warm-up begins, by a tenth of 2
    assert after(at) == pytest.approx(before(at), abs=0.2 if ended and steps > 100 else 0)
    jumps = [abs(after(step + 1) - after(step)) for step in range(max(at - 1, 0), steps)]
    assert max(jumps) <= 2.0 / 6      # sqrt(1 / 40) of 2, the steepest that any of them is
    if decay != "constant" and decay != "inverse_sqrt":
        assert after(steps) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("decay", SCHEDULES)
def test_a_run_that_goes_on_with_the_same_settings_has_the_same_rates_to_the_bit(decay):
    before = rates(decay)
    for at in (0, 5, 10, 64, 100):
        after = going_on(before, at, decay, 100)
        assert after.plan == before.plan and all(after(step) == before(step) for step in range(100))


def test_a_cosine_that_is_extended_twice_falls_from_where_it_stands_each_time():
    first = rates("cosine")
    second = going_on(first, 60, "cosine", 200)
    third = going_on(second, 150, "cosine", 400)
    assert second(60) == first(60) and third(150) == second(150)
    assert second(130) == pytest.approx(first(60) / 2) and third(400) == 0
    again = going_on(third, 300, "cosine", 400)
    assert all(again(step) == third(step) for step in range(150, 400))


@pytest.mark.parametrize("decay", ["cosine", "cooldown"])
def test_a_schedule_that_has_come_to_zero_warms_up_anew(decay):
    after = going_on(rates(decay), 100, decay, 300)
    assert [after(step) for step in (100, 104, 109)] == pytest.approx([0.2, 1.0, 2.0])
    assert after(300) == 0


def test_a_constant_run_can_be_cooled_down_at_its_end():
    after = going_on(rates("constant"), 100, "cooldown", 140, cooldown=40, cooldown_shape="linear")
    assert [after(step) for step in (100, 120, 140)] == pytest.approx([2.0, 1.0, 0.0])


def test_a_cosine_may_go_on_as_a_constant_at_its_level():
    before = rates("cosine")
    after = going_on(before, 55, "constant", 500)
    assert after(55) == after(400) == before(55)


def test_a_change_of_the_learning_rate_scales_what_follows():
    half = LearningRate(training(decay="cosine", steps=100, warmup=10, learning_rate=1.0))
    half.restore(rates("cosine").state(50), 50)
    assert half(70) == pytest.approx(rates("cosine")(70) / 2)


def test_a_state_of_before_plans_were_kept_follows_the_settings():
    rate = rates("cosine", steps=300)
    rate.restore(None, 100)
    assert rate(100) == rates("cosine", steps=300)(100)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: InverseSquareRoot(reference=0), "reference must be above 0"),
    (lambda: Cooldown(cooldown=-1), "cooldown must be above 0"),
    (lambda: Cooldown(cooldown_shape="cubic"), "unknown cooldown_shape 'cubic'; choose from linear, sqrt"),
    (lambda: training(decay="cosine", cooldown=3), "training.decay=cosine takes no 'cooldown'; it belongs to cooldown"),
])
def test_a_setting_that_cannot_be_is_refused(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()
