"""The training state of a score_sde_pytorch checkpoint: read and write Adam's state, rescaled for the other loss."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scorefield.checkpoints.checkpoint import Config, event_of
from scorefield.checkpoints.formats.score_sde_layout import Source
from scorefield.models.networks.ncsnpp import NCSNpp

EXPLODING = ("ve", "smld")
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")      # of Adam; only the first can be negative
WARMUP = 5000      # steps over which every published run raises its learning rate


def loss_ratio(config: Config) -> float:
    """Their loss divided by ours. Ours is the mean over a picture; theirs is half the sum, or the mean with reduce_mean.

    All published runs have reduce_mean, except for the variance-exploding ones below 1024 x 1024.
    """
    published = config["sde"]["name"] not in EXPLODING or event_of(config)[-1] >= 1024
    return 1.0 if config.get("reduce_mean", published) else math.prod(event_of(config)) / 2


def rescaled(optimizer: dict[str, Any] | None, factor: float) -> dict[str, Any] | None:
    """Adam's state for a loss `factor` times as large, rescaled such that Adam takes the same steps."""
    if optimizer is None or factor == 1:
        return optimizer
    state = {number: entry | {m: entry[m] * (factor if m == "exp_avg" else factor**2) for m in MOMENTS if m in entry}
             for number, entry in optimizer["state"].items()}
    groups = [group | {"eps": group["eps"] * factor} if "eps" in group else group for group in optimizer["param_groups"]]
    return {"state": state, "param_groups": groups}


def adams_settings(optimizer: dict[str, Any] | None, step: int) -> dict[str, float]:
    """Adam's fields of config.training. During the warm-up of the published runs, the stored learning rate is not final
    and is left out.
    """
    group = {} if optimizer is None else optimizer["param_groups"][0]
    found = {}
    if "betas" in group:
        found["beta1"], found["beta2"] = map(float, group["betas"])
    if "eps" in group:
        found["adam_eps"] = float(group["eps"])
    if "lr" in group and step >= WARMUP:
        found["learning_rate"] = float(group["lr"])
    if not all(0 <= value < math.inf for value in found.values()):
        raise ValueError
    return {field: value for field, value in found.items() if value > 0 or field in ("beta1", "beta2")}


def read_optimizer(state: Any, network: NCSNpp, plan: Mapping[str, Source], every: list[str], trainable: list[str],
               path: Path) -> dict[str, Any] | None:
    """Adam's state for our parameters, from the file's: its averages are joined and transposed as the weights are."""
    if state is None:
        return None
    converted: dict[int, dict[str, Any]] = {}
    try:
        group, = state["param_groups"]
        keys = every if len(group["params"]) == len(every) else trainable
        held = {key: state["state"][i] for key, i in zip(keys, group["params"], strict=True) if i in state["state"]}
        for number, (name, parameter) in enumerate(network.named_parameters()):
            parts = {key: held[key] for key in plan[name].keys if key in held}
            if len(parts) < len(plan[name].keys):      # not updated yet, or never trained
                continue
            first = next(iter(parts.values()))
            converted[number] = {"step": torch.as_tensor(float(first["step"]))}
            for moment in [m for m in MOMENTS if m in first]:
                value = plan[name].read({key: part[moment] for key, part in parts.items()})
                if value.shape != parameter.shape:
                    raise ValueError
                converted[number][moment] = value if moment == "exp_avg" else value.abs()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged: its `optimizer` is not Adam's state for the {len(trainable)} parameters of "
                         "the network; remove that key to import the weights alone") from None
    return {"state": converted, "param_groups": [{**group, "params": list(range(len(plan)))}]}


def keyed_optimizer(state: dict[str, Any] | None, network: NCSNpp, plan: Mapping[str, Source], keys: list[str]
                    ) -> dict[str, Any]:
    """Adam's state for the file's tensors, from the state for ours; if `state` is None, Adam's before the first step."""
    held: dict[str, dict[str, Any]] = {}
    group = torch.optim.Adam([nn.Parameter(torch.zeros(1))]).state_dict()["param_groups"][0]
    if state is not None:
        group, = state["param_groups"]
        names = [name for name, _ in network.named_parameters()]
        for number, entry in state["state"].items():
            source = plan[names[number]]
            for key in source.keys:
                held[key] = {"step": entry["step"].clone()}
            for moment in [m for m in MOMENTS if m in entry]:
                for key, part in source.split(entry[moment]).items():
                    held[key][moment] = part if moment == "exp_avg" else part.abs()
    return {"state": {i: held[key] for i, key in enumerate(keys) if key in held},
            "param_groups": [{**group, "params": list(range(len(keys)))}]}
