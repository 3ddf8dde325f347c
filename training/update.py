"""One update of the weights: the gradient of the mean loss, a step of Adam, the average of the weights.

    step on grad  mean of objective.loss(model, batch, draw)
    average <- decay average + (1 - decay) weights
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.ema import EMA
from scorefield.numerics.processes import whole
from scorefield.training.objectives.objective import Batch, Objective


def learning_rate(settings: Any, step: int) -> float:
    """Linear warm-up over `warmup` steps, then constant, or a half cosine that reaches 0 after the last step."""
    rate = settings.learning_rate * min(1.0, (step + 1) / max(settings.warmup, 1))
    if settings.decay == "cosine":
        progress = max(0, step - settings.warmup) / max(1, settings.steps - settings.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * progress))
    return rate


class Update:
    """What changes the weights of a network, and what it remembers from step to step.

    model      sees the network, maybe wrapped for several processes
    network    whose weights are optimised and averaged
    objective  a step minimises its loss
    settings   an object with the attributes of a config's section `training`
    """

    def __init__(self, model: Any, network: nn.Module, objective: Objective, settings: Any, device: torch.device):
        self.model, self.network, self.objective, self.settings = model, network, objective, settings
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.0, betas=(settings.beta1, settings.beta2),
                                          eps=settings.adam_eps, fused=device.type != "mps")
        self.ema = EMA(network, settings.ema_decay)

    def __call__(self, batch: Batch, draw: Any, step: int) -> tuple[Tensor, Tensor]:
        """Update by the batch of that step; the loss and the gradient's norm, still on the device."""
        loss = self.objective.loss(self.model, batch, draw).mean()
        loss.backward()
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.network)
        return loss.detach(), norm

    def state(self) -> dict[str, Any]:
        """The weights and all that further updates depend on."""
        return {"network": self.network.state_dict(), "ema": self.ema.module.state_dict(),
                "ema_updates": self.ema.updates, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.ema.updates = state["ema_updates"]
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        if state["optimizer"] is not None:      # an imported checkpoint may have none; what Adam is told is the config's
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
            for parameter, entry in self.optimizer.state.items():      # fused Adam goes by memory, whatever the strides
                for moment in ("exp_avg", "exp_avg_sq"):
                    entry[moment] = torch.empty_like(parameter).copy_(entry[moment])
