"""What a model is told beside x and t: bound once, checked, broadcast to the batch, and passed to the network."""

import copy
import pickle

import pytest
import torch
from torch import nn

from scorefield.models import MLP, Denoiser, GaussianMixture
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import VPSDE

KINDS = ["eps", "x0", "v", "score", "flow"]
TIMES = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)


class Told(nn.Module):
    """Keeps what it was told, and answers with a function of x and the label."""

    conditions = ("label",)
    classes = 4

    def forward(self, x, time, condition):
        self.condition = condition
        return x * (1 + condition["label"].to(x)[:, None])


class ToldOfPictures(nn.Module):
    conditions = ("label", "low_res")
    classes = 4

    def forward(self, x, time, condition):
        self.condition = condition
        return x + condition["low_res"].to(x)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def refusal(call, argument, match):
    """The error of one line that blames that argument."""
    with pytest.raises(ArgumentError, match=match) as caught:
        call()
    assert caught.value.arguments == (argument,) and "\n" not in str(caught.value) and "--" not in str(caught.value)


# Binding


@pytest.mark.parametrize("label", [2, torch.tensor(2), torch.tensor(2, dtype=torch.uint8), torch.tensor([2, 2, 2])], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_label_reaches_the_network_for_every_sample(kind, label):
    denoiser = Denoiser(Told(), VPSDE())
    x = normal(3, 2)
    prediction = denoiser.given(label=label).predict(x, TIMES, kind)
    assert torch.equal(denoiser.network.condition["label"], torch.tensor([2, 2, 2]))
    assert torch.equal(prediction, denoiser.predict(x, TIMES, kind, {"label": torch.tensor([2, 2, 2])}))


def test_a_label_per_sample_gives_what_each_gives_alone():
    denoiser, x = Denoiser(Told(), VPSDE()), normal(3, 2)
    together = denoiser.given(label=[3, 0, 1]).x0(x, 0.4)
    for i, label in enumerate([3, 0, 1]):
        assert torch.equal(denoiser.given(label=label).x0(x[i:i + 1], 0.4), together[i:i + 1])


def test_a_given_model_shares_the_network_the_sde_and_the_cost():
    denoiser = Denoiser(Told(), VPSDE())
    model = denoiser.given(label=1)
    assert model.sde is denoiser.sde and model.model is denoiser and model.evaluations == denoiser.evaluations == 1
    posterior = model.posterior(normal(3, 2), 0.3)
    assert torch.equal(posterior.mean, model.x0(normal(3, 2), 0.3)) and posterior.variance is None


def test_conditions_are_bound_one_after_another_and_the_last_counts():
    denoiser = Denoiser(ToldOfPictures(), VPSDE())
    small = normal(3, 2)
    model = denoiser.given(label=1).given(low_res=small).given(label=2)
    model.eps(normal(3, 2), 0.3)
    told = denoiser.network.condition
    assert told["label"].tolist() == [2, 2, 2] and torch.equal(told["low_res"], small)
    refusal(lambda: denoiser.given(label=1).eps(normal(3, 2), 0.3), "low_res", r"call model.given\(low_res=...\)")


def test_a_given_model_pickles_is_copied_and_moves_with_its_condition():
    model = Denoiser(MLP((2,), 8, 1, classes=3), VPSDE()).given(label=torch.tensor([2, 0, 1]))
    nn.init.normal_(model.model.network.last.weight)
    x = normal(3, 2)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other.eps(x, 0.5), model.eps(x, 0.5))
    assert model.to("meta").condition["label"].device.type == "meta"
    assert Denoiser(Told(), VPSDE()).given(label=1).to(torch.bfloat16).condition["label"].dtype == torch.int64


def test_gradients_flow_through_a_given_model():
    model, x = Denoiser(Told(), VPSDE(), "x0").given(label=[0, 1, 2]), normal(3, 2).requires_grad_()
    gradient, = torch.autograd.grad(model.x0(x, 0.5).sum(), x)
    assert torch.equal(gradient, torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 2))


def test_a_network_behind_a_wrapper_still_says_what_it_takes():
    class Parallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return self.module(*inputs)

    denoiser, x = Denoiser(Told(), VPSDE()), normal(3, 2)
    expected = denoiser.given(label=2).eps(x, 0.5)
    denoiser.network = Parallel(denoiser.network)
    assert torch.equal(denoiser.given(label=2).eps(x, 0.5), expected)


# No label


def test_no_label_is_the_index_after_the_last():
    denoiser = Denoiser(Told(), VPSDE(), label_dropout=True)
    x = normal(3, 2)
    for model in (denoiser, denoiser.given(label=None), denoiser.given(label=2).given(label=None)):
        model.eps(x, 0.5)
        assert denoiser.network.condition["label"].tolist() == [4, 4, 4]
    assert denoiser.with_network(Told()).given(label=None).eps(x, 0.5).shape == x.shape


def test_a_model_that_never_saw_no_label_asks_for_one():
    denoiser = Denoiser(Told(), VPSDE())
    refusal(lambda: denoiser.given(label=None), "label", "label=None means no label, which this model never saw")
    for call in (lambda: denoiser.eps(normal(3, 2), 0.5), lambda: denoiser(normal(3, 2), 0.5),
                 lambda: denoiser.posterior(normal(3, 2), 0.5)):
        refusal(call, "label", r"needs a label: call model.given\(label=...\)")


def test_a_raw_output_may_be_told_that_some_labels_were_dropped():
    denoiser = Denoiser(Told(), VPSDE())
    denoiser(normal(3, 2), 0.5, {"label": torch.tensor([4, 0, 3])})
    assert denoiser.network.condition["label"].tolist() == [4, 0, 3]


# Refusals


@pytest.mark.parametrize(("label", "match"), [
    (4, "labels go from 0 to 3, got 4"), (-1, "labels go from 0 to 3, got -1"),
    ([0, 7, 1], "labels go from 0 to 3, got 7"), (1.0, "integer.*float32"), (True, "integer.*bool"),
    (torch.zeros(2, 2, dtype=torch.long), r"of shape \(2, 2\)"), ("three", "must be a number or a tensor, got str"),
], ids=str)
def test_labels_that_do_not_exist_are_refused_when_they_are_given(label, match):
    refusal(lambda: Denoiser(Told(), VPSDE()).given(label=label), "label", match)


@pytest.mark.parametrize("model", [Denoiser(Told(), VPSDE()), GaussianMixture(
    VPSDE(), torch.zeros(4, 2), torch.ones(4), labels=[0, 1, 2, 3])], ids=["network", "mixture"])
def test_labels_of_another_batch_are_refused(model):
    given = model.given(label=torch.tensor([0, 1]))
    refusal(lambda: given.eps(normal(3, 2), 0.5), "label", "label is for a batch of 2, x is a batch of 3")
    refusal(lambda: given.posterior(normal(3, 2), 0.5), "label", "for a batch of 2, x is a batch of 3")


def test_names_that_a_model_does_not_take_are_refused():
    plain = [Denoiser(MLP((2,)), VPSDE()), GaussianMixture(VPSDE(), torch.zeros(1, 2), torch.ones(1))]
    condition = {"label": torch.zeros(3).long()}
    for model in plain:
        refusal(lambda model=model: model.given(label=1), "label", "cannot be given 'label'; it takes no condition")
        refusal(lambda model=model: model.predict(normal(3, 2), 0.5, "eps", condition), "label", "takes no condition")
        assert torch.equal(model.given().eps(normal(3, 2), 0.5), model.eps(normal(3, 2), 0.5))
    refusal(lambda: Denoiser(ToldOfPictures(), VPSDE()).given(text=1), "text", "'text'; it takes label, low_res")
    refusal(lambda: Denoiser(ToldOfPictures(), VPSDE()).given(low_res=None), "low_res", "must be a tensor, got None")


def test_label_dropout_needs_a_network_that_takes_labels():
    refusal(lambda: Denoiser(MLP((2,)), VPSDE(), label_dropout=True), "label_dropout", "MLP has not both")


# The multilayer perceptron


def test_an_mlp_without_classes_starts_as_before_and_one_with_them_has_one_more_layer():
    networks = []
    for classes in (None, 3):
        torch.manual_seed(0)
        networks.append(MLP((2,), 8, 2, classes=classes))
    plain, conditional = (network.state_dict() for network in networks)
    assert set(conditional) - set(plain) == {"label.weight"} and conditional["label.weight"].shape == (4, 8)
    assert all(torch.equal(conditional[name], plain[name]) for name in plain)
    assert networks[0].conditions == () and networks[1].conditions == ("label",)


def test_the_label_of_an_mlp_is_added_to_the_embedding_of_time():
    torch.manual_seed(0)
    network = MLP((2,), 8, 2, classes=3)
    nn.init.normal_(network.last.weight)
    for outer in network.outer:
        nn.init.normal_(outer.weight)
    x, time, label = normal(4, 2), torch.linspace(0, 999, 4), torch.tensor([0, 1, 2, 3])
    output = network(x, time, {"label": label})
    assert not torch.equal(output, network(x, time, {"label": label.flip(0)}))
    plain = MLP((2,), 8, 2)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k != "label.weight"})
    for i in range(4):
        plain.time[2].bias.data = network.time[2].bias.data + network.label.weight.data[i]
        torch.testing.assert_close(plain(x[i:i + 1], time[i:i + 1]), output[i:i + 1], rtol=1e-5, atol=1e-6)


def test_an_mlp_with_classes_must_be_told_a_label():
    refusal(lambda: MLP((2,), classes=3)(normal(1, 2), torch.zeros(1)), "condition", "'label'.*3 means no label")
    refusal(lambda: MLP((2,), classes=0), "classes", "at least 1")
