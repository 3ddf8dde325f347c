"""From a config to a denoiser."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from scorefield.models.denoiser import Denoiser
from scorefield.models.networks.mlp import MLP
from scorefield.models.networks.ncsnpp import NCSNpp
from scorefield.models.networks.unet import UNet
from scorefield.numerics.errors import ArgumentError
from scorefield.sde_lib import SDES
from scorefield.sde_lib.schedules import BETAS, linear_betas
from scorefield.sde_lib.sde import SDE


def of_pictures(network: Callable[..., nn.Module], shape: Sequence[int], **settings: Any) -> nn.Module:
    """A network of square pictures for events of `shape`; ValueError where these are no such."""
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ArgumentError(f"a U-Net needs square pictures (channels, size, size), the data are {tuple(shape)}", "network")
    return network(image_size=shape[1], channels=shape[0], **settings)


# A network's constructor, called with the event shape and the settings of config.model; and the class that takes them.
NETWORKS: dict[str, tuple[Callable[..., nn.Module], type[nn.Module]]] = {
    "unet": (partial(of_pictures, UNet), UNet),
    "ncsnpp": (partial(of_pictures, NCSNpp), NCSNpp),
    "mlp": (MLP, MLP),
}


def choose(kind: str, registry: Mapping[str, Any], word: str, flag: str) -> Any:
    """registry[word], or ValueError with the words that exist."""
    if word not in registry:
        raise ValueError(f"unknown {kind} {word!r}; choose from {', '.join(registry)} ({flag})")
    return registry[word]


def given_settings(section: Mapping[str, Any], taker: Callable[..., Any], besides: Sequence[str], name: str,
                   owner: str) -> dict[str, Any]:
    """The fields of a config's section that are not None, as arguments of `taker`; ValueError where it has no such.

    besides  fields that belong to the section itself
    """
    allowed = [p for p in inspect.signature(taker).parameters if p in section and p not in besides]
    given = {k: v for k, v in section.items() if v is not None and k not in besides}
    for field in given:
        if field not in allowed:
            raise ArgumentError(f"{owner!r} takes no {field!r}; it takes {', '.join(allowed)}", field)
    return given


def complete_settings(taker: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a class or function: as given, or its defaults where that is None."""
    parameters = inspect.signature(taker).parameters
    return {name: p.default if given.get(name) is None else given[name] for name, p in parameters.items()
            if p.default is not p.empty or name in given}


def effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config whose sections `sde` and `model` have the defaults of the classes that read them in place of None."""
    result = dict(config)
    networks = {name: taker for name, (_, taker) in NETWORKS.items()}
    for section, word, takers in (("sde", "name", SDES), ("model", "network", networks)):
        fields = config.get(section)
        if isinstance(fields, Mapping) and (taker := takers.get(str(fields.get(word)))) is not None:
            result[section] = {**fields, **complete_settings(taker, fields)}
            for size in ("image_size", "channels"):      # which are the data's
                result[section].pop(size, None)
    if isinstance(sde := result.get("sde"), dict) and sde.get("name") == "ddpm" and sde.get("betas") is None:
        sde |= {"schedule": sde.get("schedule") or "linear", "steps": sde.get("steps") or 1000}
        ends = complete_settings(BETAS.get(str(sde["schedule"]), linear_betas), sde)
        sde |= {end: ends[end] for end in ("beta_min", "beta_max") if end in ends}
    return result


def build_sde(config: Any) -> SDE:
    """The SDE of config.sde; ValueError for a name or setting that does not exist."""
    make = choose("SDE", SDES, config.sde.name, "--config.sde.name")
    with torch.device("cpu"):      # a chain computes when it is made, also for a network without weights (device "meta")
        return make(**given_settings(config.sde, make, ["name"], "sde", config.sde.name))


def build_denoiser(config: Any, shape: Sequence[int]) -> Denoiser:
    """An untrained denoiser for events of `shape`, from config.sde and config.model; ValueError as above."""
    model = config.model
    make, taker = choose("network", NETWORKS, model.network, "--config.model.network")
    own = ["network", "parametrization", "time_input", "input_std"]
    network = make(tuple(shape), **given_settings(model, taker, own, "model", model.network))
    return Denoiser(network, build_sde(config), model.parametrization, model.time_input,
                    model.get("input_std"))
