"""One update of the weights: the gradient of the mean loss, a step of Adam, the average of the weights.

    step on grad  mean of objective.loss(model, batch, draw)
    average <- decay average + (1 - decay) weights

An update whose gradient is not finite changes nothing: neither weights nor moments nor average. Under training.on_nonfinite
"stop" no update after it does either, so that the weights stay those before the step that broke until the loop sees it. On a
GPU that is a mask on the device, for which nobody waits.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.ema import EMA
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
    masked     whether a mask on the device leaves out what is not finite; else its norm is looked at, which costs nothing on
               a CPU. By default, on GPUs
    skipped    (attribute) how many updates were left out, (), on the device
    whole      (attribute) False while weights, moments and average do not belong to one step
    """

    def __init__(self, model: Any, network: nn.Module, objective: Objective, settings: Any, device: torch.device,
                 masked: bool | None = None):
        self.model, self.network, self.objective, self.settings = model, network, objective, settings
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.0, betas=(settings.beta1, settings.beta2),
                                          eps=settings.adam_eps, fused=device.type != "mps")
        self.ema = EMA(network, settings.ema_decay)
        self.masked = device.type == "cuda" if masked is None else masked
        self.skipped, self._mask = torch.zeros((), device=device), torch.zeros((), device=device)
        self._halted, self.whole = False, True

    def __call__(self, batch: Batch, draw: Any, step: int) -> tuple[Tensor, Tensor]:
        """Update by the batch of that step; the loss and the gradient's norm, still on the device."""
        loss = self.objective.loss(self.model, batch, draw).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        if self._leaves_out(norm.detach()):
            self.ema.updates += 1      # counts steps, so that it needs no wait for a device
        else:
            self.whole = False
            self.optimizer.step()      # which leaves out what its found_inf says
            self.ema.update(self.network, 1 - self._mask if self.masked else None)
            self.whole = True
        self.optimizer.zero_grad()
        return loss.detach(), norm

    def _leaves_out(self, norm: Tensor) -> bool:
        """Whether this update is left out. With a mask that is settled on the device, and the answer here is False."""
        stays = self.settings.on_nonfinite == "stop"
        if self.masked:
            bad = (~norm.isfinite()).float()
            self._mask = torch.maximum(self._mask, bad) if stays else bad
            self.optimizer.found_inf = self._mask  # type: ignore[attr-defined]
            self.skipped += self._mask
            return False
        self._halted = (stays and self._halted) or not math.isfinite(float(norm))
        if self._halted:
            self.skipped += 1
        return self._halted

    def take_back(self, steps: int) -> None:
        """Forget the last updates, all of which were left out."""
        self.ema.updates -= steps
        self.skipped -= steps
        self._mask.zero_()
        self._halted = False

    def state(self) -> dict[str, Any]:
        """The weights and all that further updates depend on."""
        return {"network": self.network.state_dict(), "ema": self.ema.module.state_dict(),
                "ema_updates": self.ema.updates, "optimizer": self.optimizer.state_dict(), "skipped": int(self.skipped)}

    def restore(self, state: dict[str, Any]) -> None:
        self.ema.updates = state["ema_updates"]
        self.skipped.fill_(state.get("skipped", 0))
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        if state["optimizer"] is not None:      # an imported checkpoint may have none; what Adam is told is the config's
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
            for parameter, entry in self.optimizer.state.items():      # fused Adam goes by memory, whatever the strides
                for moment in ("exp_avg", "exp_avg_sq"):
                    entry[moment] = torch.empty_like(parameter).copy_(entry[moment])
