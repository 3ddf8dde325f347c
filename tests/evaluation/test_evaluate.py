"""The function evaluate: what it compares is what is drawn, and what does not fit is refused before anything is drawn."""

import math

import pytest
import torch

from scorefield.data import from_arrays, make_codec
from scorefield.evaluation import Quality, evaluate, generate, measure
from scorefield.evaluation.classes import uneven
from scorefield.evaluation.metrics import Reference, make_metrics
from scorefield.models import GaussianMixture
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE

STD = 0.3
MODEL = GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.tensor([STD**2]), torch.ones(1))
POINTS = torch.randn(2200, 2, generator=torch.Generator().manual_seed(0)) * STD
DATA = from_arrays(POINTS[:2000], POINTS[2000:])
AUTO = make_sampler("auto", steps=8)


def test_the_figures_are_those_of_the_samples_that_are_drawn():
    found = evaluate(MODEL, DATA, n=200, sampler=AUTO, metrics=["sliced_wasserstein", "energy"], seed=3, progress=False)
    codec = make_codec(None)
    samples = generate(MODEL, AUTO, (2,), codec, 200, seed=3, progress=False)
    own = make_metrics(["sliced_wasserstein", "energy"], Reference(DATA, codec), seed=3)
    assert found.figures == measure(samples, own, codec)
    assert found.nfe == 8 and found.samples == 200 and found.likelihood is None
    assert measure([samples.first(200)[0]], make_metrics(["energy"], Reference(DATA, codec), 3), codec)["energy"] == (
        found.figures["energy"])      # in one batch, as a tensor


def test_the_exact_model_is_at_the_floor_and_at_its_entropy():
    found = evaluate(MODEL, DATA, n=200, sampler=AUTO, metrics=["sliced_wasserstein"], likelihood=True, progress=False)
    figure = found.figures["sliced_wasserstein"]
    assert figure.value == pytest.approx(figure.floor, abs=0.03) and figure.floor_samples == 200
    entropy = math.log2(STD * math.sqrt(2 * math.pi * math.e))
    assert found.likelihood.mean == pytest.approx(entropy, abs=4 * found.likelihood.standard_error + 0.01)
    wrong = GaussianMixture(VPSDE(), torch.tensor([[1.0, 0.0]]), torch.tensor([STD**2]), torch.ones(1))
    shifted = evaluate(wrong, DATA, n=200, sampler=AUTO, metrics=["sliced_wasserstein"], progress=False)
    assert shifted.figures["sliced_wasserstein"].value == pytest.approx(math.sqrt(0.5), abs=0.1)      # |shift| / sqrt(D)


def test_all_labels_have_the_same_share_and_reach_the_model():
    labelled = GaussianMixture(VPSDE(), torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), torch.full((2,), STD**2), torch.ones(2),
                               labels=torch.tensor([0, 1]))
    y = torch.arange(2000) // 10 % 2      # so that both splits have both classes alike
    data = from_arrays(POINTS[:2000] + torch.tensor([2.0, 0.0]) * (1 - 2 * y)[:, None], y_train=y)
    figures = [evaluate(labelled, data, n=200, sampler=AUTO, metrics=["sliced_wasserstein"], label=label, progress=False
                        ).figures["sliced_wasserstein"].value for label in ("all", [0, 1], 0)]
    assert figures[0] == figures[1] < 0.1 and figures[2] < 0.1      # a class is compared with its own examples
    one = evaluate(labelled, data, n=200, sampler=AUTO, metrics=["energy"], label=0, likelihood=True, progress=False)
    assert one.classes == [data.class_names[0]] and one.figures["energy"].reference == 900
    entropy = math.log2(STD * math.sqrt(2 * math.pi * math.e))
    assert one.likelihood.mean == pytest.approx(entropy, abs=4 * one.likelihood.standard_error + 0.01)
    with pytest.raises(ValueError, match="label must be a class"):
        evaluate(labelled, data, n=200, label="every")


def test_what_does_not_fit_is_refused_before_anything_is_drawn():
    def drawn(batch):
        raise AssertionError

    for settings, part in (({"n": 5}, "at least 10 samples, got 5"), ({"metrics": ["fud"]}, "did you mean 'fid'"),
                           ({"features": "digits"}, "digits"), ({"label": 1}, "leave out label")):
        with pytest.raises(ValueError, match=part):
            evaluate(drawn, DATA, **settings)
    with pytest.raises(ValueError, match="give the data set"):
        evaluate(MODEL)
    with pytest.raises(ValueError, match="identity"):
        evaluate(MODEL, DATA, folder="anywhere")


def test_a_quality_prints_a_line_for_each_figure_and_is_json():
    found = evaluate(MODEL, DATA, n=60, sampler=AUTO, metrics=["energy", "mmd"], bootstrap=0, progress=False)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["energy", "mmd"] and "floor" in lines[0] and "[" not in lines[0]
    told = found.summary()
    assert told["metrics"]["energy"]["samples"] == 60 and told["num_samples"] == 60 and "likelihood" not in told
    assert str(Quality({})) == ""


def test_classes_in_other_shares_than_the_data_are_said():
    label = torch.tensor([0] * 30 + [1] * 10)
    data = from_arrays(torch.randn(40, 2), y_train=label, class_names=("ash", "oak"))
    assert uneven(data, [0, 0, 0, 1]) is None and uneven(data, [1]) is None
    assert "of ash 50 % and 7" in uneven(data, [0, 1])
    assert uneven(from_arrays(torch.randn(40, 2)), [0, 1]) is None
