"""Likelihood given a label, and classification by likelihood, against exact mixtures and numbers worked out by hand."""

import math

import pytest
import torch

from scorefield.data import from_arrays, make_codec
from scorefield.evaluation import Classification, Evaluation, classify, score
from scorefield.evaluation.classify import frequencies, wilson
from scorefield.guidance import classifier_free
from scorefield.likelihood import log_prob
from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE

EXACT = {"divergence": "exact", "rtol": 1e-6, "atol": 1e-6, "float64": True, "progress": False}


def labelled(n=60):
    """An exact model of three classes, the last twice as frequent, and draws of it with their labels."""
    means = torch.tensor([[-1.0, 0.0], [0.4, 0.8], [0.6, -0.7]])
    model = GaussianMixture(VPSDE(), means, torch.tensor([0.3, 0.2, 0.4]), torch.tensor([1.0, 1.0, 2.0]), labels=[0, 1, 2])
    label = torch.tensor([0, 1, 2, 2]).repeat(n // 4)
    x = model.given(label=label).sample(n, generator=torch.Generator().manual_seed(0))
    return model, from_arrays(x.float(), x.float(), label, label), x.float(), label


def test_a_score_given_a_label_is_that_of_the_class():
    model, data, x, label = labelled(20)
    for given, exact in (("true", model.given(label=label)), (1, model.given(label=1)), (None, model)):
        result = score(model, data, make_codec(None), label=given, **EXACT)
        ode = log_prob(exact, x.double(), divergence="exact", rtol=1e-6, atol=1e-6).value
        torch.testing.assert_close(result.log_prob[0], ode, rtol=0, atol=1e-10)
        torch.testing.assert_close(ode, exact.log_prob(x.double()), rtol=0, atol=0.03)      # the prior is not quite N(0, I)


def test_classes_are_told_apart_as_by_the_exact_classifier():
    model, data, x, label = labelled()
    scores = [score(model, data, make_codec(None), label=y, **EXACT) for y in range(3)]
    result = classify(scores, label, frequencies(data, 3))
    exact = model.class_log_prob(x.double(), 0.0)
    assert torch.equal(frequencies(data, 3), torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(result.log_posterior, exact, rtol=0, atol=0.06)      # as above
    assert torch.equal(result.predicted, exact.argmax(1)) and 0.5 < result.accuracy < 1
    flat = classify(scores, label, torch.full((3,), 1 / 3))
    assert not torch.equal(flat.log_posterior.argmax(1), result.predicted)      # the prior counts


def test_every_class_is_scored_with_the_same_noise():
    data = from_arrays(torch.randint(0, 4, (6, 3), generator=torch.Generator().manual_seed(0)), None,
                       torch.arange(6) % 2, levels=4)
    model = GaussianMixture(VPSDE(), torch.zeros(2, 3), torch.full((2,), 0.3), labels=[0, 1])
    first, second = (score(model, data, make_codec(4), label=y, divergence="hutchinson", progress=False) for y in (0, 1))
    assert torch.equal(first.log_prob, second.log_prob)      # two names of one distribution


def by_hand():
    """Posteriors (.9, .1), (.4, .6), (.2, .8), (.55, .45) of classes 0, 0, 1, 1."""
    posterior = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.55, 0.45]], dtype=torch.float64)
    return Classification(posterior.log() + torch.arange(4.0)[:, None], torch.tensor([0, 0, 1, 1]), torch.full((2,), 0.5))


def test_accuracy_and_calibration_are_what_they_are_by_hand():
    result = by_hand()
    assert result.predicted.tolist() == [0, 1, 1, 0] and result.accuracy == 0.5
    assert result.standard_error == pytest.approx(0.25)
    assert result.confusion.tolist() == [[1, 1], [1, 1]]
    assert result.negative_log_likelihood == pytest.approx(-math.log(0.9 * 0.4 * 0.8 * 0.45) / 4)
    assert result.brier == pytest.approx((2 * 0.01 + 2 * 0.36 + 2 * 0.04 + 2 * 0.3025) / 4)
    # bins of 1/15: .55 in [8/15, 9/15), wrong; .6 in [9/15, 10/15), wrong; .8 in [12/15, 13/15), right; .9 in [13/15, ...
    assert result.calibration_error == pytest.approx((0.55 + 0.6 + 0.2 + 0.1) / 4)
    assert [row["examples"] for row in result.reliability] == [1, 1, 1, 1]
    rows = result.rows(("cat", "dog"))
    assert rows[1]["label"] == "cat" and rows[1]["predicted"] == "dog"
    assert float(rows[1]["probability"]) == pytest.approx(0.6)
    assert rows[0]["log_prob_cat"] == repr(math.log(0.9)) and set(result.summary()) >= {"accuracy", "brier", "confusion"}


def test_wilsons_interval_is_the_root_of_its_equation():
    for share, n in ((0.95, 360), (1.0, 1000), (0.0, 10), (0.5, 4)):
        for end in wilson(share, n):
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, abs=1e-12)


def test_labels_that_do_not_fit_are_refused_before_anything_is_computed():
    model, data, _, _ = labelled(8)
    plain = from_arrays(torch.randn(20, 2))
    only = Denoiser(MLP((2,), width=8, layers=1, classes=3), VPSDE())
    none = Denoiser(MLP((2,), width=8, layers=1), VPSDE())
    for bad, what, label, match in (
            (model, plain, "true", "have no labels"), (model, data, 3, "from 0 to 2, got 3"),
            (model, data, "cat", "'true', the number of a class"), (only, data, None, "given a label"),
            (none, data, "true", "takes no label"), (none, data, 0, "takes no label")):
        with pytest.raises(ArgumentError, match=match):
            Evaluation(bad, what, make_codec(None), label=label)
    with pytest.raises(ArgumentError, match="no known density"):
        score(classifier_free(model, 2.0, label=1), data, make_codec(None), **EXACT)
    with pytest.raises(ArgumentError, match="need log_likelihood"):
        Classification(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), torch.ones(2))


def test_parts_of_another_label_are_not_taken_for_ones_own(tmp_path):
    model, data, _, _ = labelled(8)
    settings = {"folder": tmp_path / "parts", "batch_size": 4, **EXACT}
    first = Evaluation(model, data, make_codec(None), label="true", **settings).run()
    again = Evaluation(model, data, make_codec(None), label="true", **settings)
    other = Evaluation(model, data, make_codec(None), label=1, **settings)
    assert first.resumed == 0 and again.resumed == 2 and other.resumed == 0
    assert torch.equal(again.run().result().log_prob, first.result().log_prob)
