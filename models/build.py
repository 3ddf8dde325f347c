"""From the sections `sde` and `model` of a config to a denoiser."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from scorefield.models.bridge import Bridge
from scorefield.models.conditions import declared
from scorefield.models.denoiser import Denoiser
from scorefield.models.networks.autoencoder import Autoencoder
from scorefield.models.networks.classifier import Classifier
from scorefield.models.networks.dit import DiT
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.outputs import doubled
from scorefield.models.networks.two_way import Both, TwoWay
from scorefield.models.networks.unet import UNet
from scorefield.models.student import student_of
from scorefield.numerics.errors import ArgumentError, renamed
from scorefield.numerics.sections import Section, arguments
from scorefield.sde_lib import SDES
from scorefield.sde_lib.learned import LearnedVPSDE
from scorefield.sde_lib.schedules import BETAS
from scorefield.sde_lib.sde import SDE


def of_pictures(network: Callable[..., nn.Module], shape: Sequence[int], **settings: Any) -> nn.Module:
    """A network of pictures, for data of `shape` (channels, height, width), or of series (channels, length) if its class
    says so by `axes`; ArgumentError for others.
    """
    sides, axes = tuple(shape[1:]), getattr(network, "axes", (2,))
    if len(sides) not in axes:
        takes = "pictures (channels, height, width)" + " or series (channels, length)" * (1 in axes)
        other = "mlp" if len(sides) != 1 else "unet"
        raise ArgumentError(f"this network takes {takes}, the data are {tuple(shape)}; choose another network, such as "
                            f"{other}", "network")
    return network(image_size=sides[0] if len(sides) == 2 and sides[0] == sides[1] else sides, channels=shape[0], **settings)


# A network's constructor, called with the shape of an example and the settings; and the class that takes the settings.
NETWORKS: dict[str, tuple[Callable[..., nn.Module], type[nn.Module]]] = {
    "unet": (partial(of_pictures, UNet), UNet),
    "ncsnpp": (partial(of_pictures, NCSNpp), NCSNpp),
    "mlp": (MLP, MLP),
    "dit": (partial(of_pictures, DiT), DiT),
    "classifier": (partial(of_pictures, Classifier), Classifier),
    "autoencoder": (partial(of_pictures, Autoencoder), Autoencoder),
}
# Two networks toward the two ends of a Schroedinger bridge.
NETWORKS |= {f"bridge_{name}": (Both(NETWORKS[name][0]), NETWORKS[name][1]) for name in ("unet", "ncsnpp", "mlp")}
SDE_SECTION = Section("sde", "name", SDES)
MODEL_SECTION = Section("model", "network", NETWORKS, taker=lambda entry: entry[1],
                        without=("shape", "image_size", "channels"),
                        beside=lambda entry: Bridge if isinstance(entry[0], Both) else Denoiser,
                        apart=("network", "sde", "label_dropout"))
# A network whose sizes multiply to LARGE at most, and that has at most MANY blocks, is allocated without a count.
LARGE, MANY = 2**14, 64
_ELSEWHERE = {"image_size": "data.image_size", "channels": "data.channels", "label_dropout": "training.label_dropout"}


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config whose sections `sde` and `model` have every field, those that are not there with their defaults.

    Raises ArgumentError for a class or a field that does not exist.
    """
    result = dict(config)
    for section in (SDE_SECTION, MODEL_SECTION):
        if isinstance(fields := config.get(section.name), Mapping) and section.word in fields:
            result[section.name] = section.complete(fields)
    sde = result.get("sde") or {}
    if sde.get("name") == "ddpm" and sde["betas"] is None and sde["schedule"] in BETAS:      # whose ends are the schedule's
        schedule = arguments(BETAS[sde["schedule"]])
        sde |= {end: schedule[end].default for end in ("beta_min", "beta_max") if sde[end] is None and end in schedule}
    return result


def build_sde(config: Mapping[str, Any]) -> SDE:
    """The SDE of the section `sde` of a config; ArgumentError for a name or a setting that does not exist."""
    make, settings, _ = SDE_SECTION.split(config["sde"])
    with torch.device("cpu"), renamed("sde"):      # a chain computes when it is made, whatever the default device
        return make(**settings)


def build_denoiser(config: Mapping[str, Any], shape: Sequence[int]) -> Denoiser:
    """An untrained denoiser for examples of `shape`, of the sections `sde` and `model`; ArgumentError as `build_sde`. A
    Bridge if the network is one of two ways.

    It knows "no label" if the network takes labels and the section `training` drops them.
    """
    (make, _), settings, beside = MODEL_SECTION.split(config["model"])
    sde = build_sde(config)
    with renamed("model", _ELSEWHERE):
        training = config.get("training") or {}
        dropout = training.get("label_dropout") or 0
        _require_memory(make, shape, settings)
        network = make(tuple(shape), **settings)
        if isinstance(network, TwoWay):
            return Bridge(network, sde, **beside)      # type: ignore[return-value]      # a model of its own, trained alike
        if beside["learned_variance"]:
            network = doubled(network)
        if isinstance(sde, LearnedVPSDE):      # its weights are the network's, to be trained, averaged and saved with those
            network.schedule = sde.schedule
        model = Denoiser(network, sde, **beside, label_dropout=dropout > 0 and declared(network).classes is not None)
    with renamed("training"):
        model.made_for = student_of(training, sde)
    return model


def _require_memory(make: Callable[..., nn.Module], shape: Sequence[int], settings: Mapping[str, Any]) -> None:
    """ArgumentError for a network whose weights this machine cannot hold: allocating them would stop other programs."""
    sizes = [number for value in settings.values() for number in (value if isinstance(value, tuple) else (value,))
             if type(number) is int and number > 1]
    blocks = max(settings.get("layers") or 0, settings.get("num_blocks") or 0)
    if math.prod(sizes) <= LARGE and blocks <= MANY or not hasattr(os, "sysconf"):
        return
    with torch.device("meta"):      # which counts, and allocates nothing
        weights = 4 * sum(parameter.numel() for parameter in make(tuple(shape), **settings).parameters())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if weights > memory:
        names = [name for name, value in settings.items() if type(value) is int and value == max(sizes)]
        raise ArgumentError(f"the weights of this network take {weights / 2**30:,.0f} GiB, and this machine has "
                            f"{memory / 2**30:,.0f} GiB; make it smaller", *names)
