"""Classifier-free guidance on labelled mixtures, whose scores with and without a label are known exactly."""

import math

import pytest
import torch

from scorefield.guidance import classifier_free, threshold
from scorefield.models import MLP, Denoiser, wrap
from scorefield.numerics.errors import ArgumentError
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE

KINDS = ("score", "eps", "x0", "v", "flow")


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batched", [None, True, False])
def test_scale_one_is_the_model_with_the_label_and_zero_the_one_without_to_the_bit(mixture, kind, batched, x, t):
    for scale, exact in ((1.0, mixture.given(label=1)), (0.0, mixture)):
        guided = classifier_free(mixture, scale, batched=batched, label=1)
        assert torch.equal(guided.predict(x, t, kind), exact.predict(x, t, kind)) and guided.evaluations == 1
        posterior, own = guided.posterior(x, t), exact.posterior(x, t)
        assert torch.equal(posterior.mean, own.mean) and torch.equal(posterior.variance, own.variance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [-0.5, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("batched", [True, False])
def test_other_scales_go_on_along_the_line_through_both(mixture, kind, scale, batched, x, t):
    for label in (1, torch.tensor([0, 1, 0, 1, 1, 0])):
        for time in (t, torch.tensor(0.3, dtype=torch.float64), 0.3):
            none, told = mixture.predict(x, time, kind), mixture.given(label=label).predict(x, time, kind)
            close(classifier_free(mixture, scale, batched=batched, label=label).predict(x, time, kind),
                  none + scale * (told - none))


def test_each_sample_of_a_batch_is_guided_to_its_own_label(mixture, x, t):
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    together = classifier_free(mixture, 2.0, label=labels).score(x, t)
    for i, label in enumerate(labels.tolist()):
        close(together[i:i + 1], classifier_free(mixture, 2.0, label=label).score(x[i:i + 1], t[i:i + 1]))


class Told(torch.nn.Module):
    """A network of a label and a picture, that records the size of every batch."""

    conditions, classes = ("label", "low_res"), 3

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, time, condition):
        self.rows.append(len(x))
        return x * condition["label"][:, None] + condition["low_res"] + time[:, None] / 999


@pytest.mark.parametrize("batched", [True, False])
def test_another_condition_is_told_to_both_and_one_call_takes_twice_the_batch(batched, x, t):
    network, low_res = Told(), torch.arange(12.0, dtype=torch.float64).reshape(6, 2)
    model = Denoiser(network, VPSDE(), label_dropout=True)
    for guided in (classifier_free(model, 2.5, batched=batched, label=1, low_res=low_res),
                   classifier_free(model.given(low_res=low_res), 2.5, batched=batched, label=1)):
        network.rows.clear()
        expected = x * (3 + 2.5 * (1 - 3)) + low_res + t[:, None]      # the index 3 is "no label"
        torch.testing.assert_close(guided.eps(x, t), expected, rtol=1e-5, atol=1e-5)      # the network works in float32
        assert network.rows == ([12] if batched else [6, 6])


@pytest.mark.parametrize("batched", [True, False, None])
@pytest.mark.parametrize(("scale", "cost"), [(0.0, 1), (1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("sampler", ["auto", "euler_maruyama", "heun", "ode"])
def test_a_guided_sampler_counts_every_evaluation_of_the_network(scale, cost, sampler, batched):
    rows = []
    network = MLP((2,), width=8, layers=1, classes=3)
    network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    model = Denoiser(network, VPSDE(), label_dropout=True)
    options = {"rtol": 1e-2, "atol": 1e-2} if sampler == "ode" else {"steps": 6, "denoise": True}
    guided = classifier_free(model, scale, batched=batched, label=2)
    result = make_sampler(sampler, **options)(guided, prior_sample(model.sde, (2,), range(3)), range(3))
    assert guided.evaluations == cost and result.nfe == sum(rows) / 3


def test_a_model_that_is_no_denoiser_is_called_twice(mixture, x, t):
    limited = threshold(mixture, low=-0.5, high=0.5)
    guided = classifier_free(limited, 2.0, batched=True, label=0)
    none, told = limited.given(label=None).eps(x, t), limited.given(label=0).eps(x, t)
    close(guided.eps(x, t), none + 2 * (told - none))


# ---- the interval --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("batched", [True, False])
def test_outside_of_the_interval_the_model_is_the_one_with_the_label_to_the_bit(mixture, kind, scale, batched, x, t):
    low, high = 0.2, 0.7
    limited = classifier_free(mixture, scale, (low, high), batched, label=1)
    everywhere, told = classifier_free(mixture, scale, label=1, batched=batched), mixture.given(label=1)
    within = (t >= low) & (t <= high)
    assert within.any() and not within.all()
    mixed = limited.predict(x, t, kind)      # times of one batch on both sides
    assert torch.equal(mixed[~within], told.predict(x, t, kind)[~within])
    close(mixed[within], everywhere.predict(x, t, kind)[within])
    for time, model, cost in ((0.1, told, 1), (low, everywhere, everywhere.evaluations),
                              (high, everywhere, everywhere.evaluations), (0.7001, told, 1)):
        for form in (time, torch.tensor(time, dtype=torch.float64), torch.full((6,), time, dtype=torch.float64)):
            assert torch.equal(limited.predict(x, form, kind), model.predict(x, form, kind))
            assert limited.evaluations_at(form) == cost
    assert limited.evaluations_at(t) == (1 if scale == 1 else 2) == limited.evaluations


@pytest.mark.parametrize("name", ["auto", "rk4", "ancestral"])
def test_evaluations_outside_of_the_interval_cost_one(name):
    rows = []
    network = MLP((2,), width=8, layers=1, classes=3)
    network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    model = Denoiser(network, VPSDE(), label_dropout=True)
    guided = classifier_free(model, 2.0, interval=(0.3, 0.6), label=2)
    sampler = make_sampler(name, steps=12, denoise=True)
    x_T = prior_sample(model.sde, (2,), range(3))
    result = sampler(guided, x_T, range(3))
    assert result.nfe == sum(rows) / 3
    whole = sampler(classifier_free(model, 2.0, label=2), x_T, range(3))
    assert whole.nfe / 2 < result.nfe < whole.nfe


def test_an_interval_of_all_times_is_none(mixture, x, t):
    whole = classifier_free(mixture, 0.0, interval=(0, mixture.sde.t_max), label=1)
    assert whole.interval is None and whole.evaluations == 1 and torch.equal(whole.eps(x, t), mixture.eps(x, t))


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "condition", "match"), [
    (math.inf, {"label": 1}, "scale must be finite, got inf"), (math.nan, {"label": 1}, "scale must be finite"),
    (2.0, {}, "guidance needs a condition"), (2.0, {"label": None}, "needs one, such as label=3"),
    (2.0, {"text": 1}, "cannot be given 'text'"), (2.0, {"label": 7}, "labels go from 0 to 1, got 7"),
])
def test_what_cannot_guide_is_refused(mixture, scale, condition, match):
    with pytest.raises(ArgumentError, match=match):
        classifier_free(mixture, scale, **condition)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0.1, 1.1), (math.nan, 0.5), (0.1, math.inf),
                                      (0.1,), 0.5, ("a", "b")])
def test_an_interval_that_is_none_is_refused(mixture, interval):
    with pytest.raises(ArgumentError, match="0 <= LO < HI <= ") as caught:
        classifier_free(mixture, 2.0, interval=interval, label=1)
    assert caught.value.arguments == ("interval",)


def test_a_model_that_cannot_lack_the_label_cannot_be_guided(mixture):
    with pytest.raises(ArgumentError, match="trained without label dropout"):
        classifier_free(Denoiser(MLP((2,), width=8, classes=3), VPSDE()), 2.0, label=1)
    with pytest.raises(ArgumentError, match="takes no condition"):
        classifier_free(wrap(lambda x, time: x, VPSDE()), 2.0, label=1)
    with pytest.raises(ArgumentError, match="label is for a batch of 4"):
        classifier_free(mixture, 2.0, label=torch.zeros(4, dtype=torch.long)).eps(torch.zeros(3, 2), 0.5)
