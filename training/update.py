"""One update of the weights: the gradient of the mean loss, a step of the optimiser, the averages of the weights.

    step on grad  mean of objective.loss(model, batch, draw)
    average <- decay average + (1 - decay) weights

With `accumulate` = k, the gradient is the mean of those of k parts of the batch, one after the other, so that the
activations of one part are in memory. In fp16 the loss is scaled, so that small gradients do not vanish, and an update whose
gradient overflows is skipped (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).

An update whose gradient is not finite changes nothing: neither weights nor moments nor averages. Under training.on_nonfinite
"stop" no update after it does either, so that the weights stay those before the step that broke until the loop sees it. On a
GPU that is a mask on the device, for which nobody waits.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.ema import EMA, PowerEMA, averages_of, make_average
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.options import filled
from scorefield.numerics.processes import whole
from scorefield.training.objectives.objective import Batch, Objective
from scorefield.training.optimizers import OPTIMIZERS, groups_of, restore_state, state_of
from scorefield.training.schedules import LearningRate

LEAST_SCALE = 1e-3      # a loss scaled by less than this has no gradient in fp16 that is finite


class Update:
    """What changes the weights of a network, and what it remembers from step to step.

    model      sees the network, maybe wrapped for several processes
    network    whose weights are optimised and averaged
    objective  a step minimises its loss
    settings   an object with the attributes of a config's section `training`
    masked     whether a mask on the device leaves out what is not finite; else its norm is looked at, which costs nothing on
               a CPU. By default on GPUs, for adam, adamw and sgd, whose kernels read the mask

    skipped    (attribute) how many updates were left out, a number on the device
    whole      (attribute) False while weights, moments and averages do not belong to one step
    rate       (attribute) the learning rate as a function of the step
    notes      (attribute) lines for the user about what `restore` could not take over
    """

    def __init__(self, model: Any, network: nn.Module, objective: Objective, settings: Any, device: torch.device,
                 masked: bool | None = None):
        self.model, self.network, self.objective, self.settings, self.device = model, network, objective, settings, device
        self.parameters = list(network.parameters())
        self.kind, self.rate = filled(OPTIMIZERS[settings.optimizer], settings), LearningRate(settings)
        self.optimizer = self.kind.build(groups_of(network, getattr(self.kind, "weight_decay", 0.0)), device)
        self.ema = EMA(network, settings.ema_decay)
        self.averages = {name: make_average(network, name) for name in averages_of(settings.averages)}
        self.scaler = torch.amp.GradScaler(device.type) if settings.precision == "fp16" else None
        fused = bool(self.optimizer.defaults.get("fused"))
        self.masked = fused and device.type == "cuda" if masked is None else masked
        self.skipped, self._mask = torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), device=device)
        self._halted, self.whole = False, True
        self.notes: list[str] = []
        self._norms: Tensor | None = None
        self._done = 0      # updates of the run

    def __call__(self, batch: Batch, draw: Any, step: int) -> tuple[Tensor, Tensor]:
        """Update by the batch of that step; the loss and the gradient's norm, still on the device.

        The norm of an update that the scaling of fp16 skips is given as 0, since that is no fault.
        """
        loss = self._backward(batch, draw)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        if not self._leaves_out(norm.detach()):
            self.whole = False
            self.optimizer.step()      # which leaves out what its found_inf says
            for average in (self.ema, *self.averages.values()):
                average.update(self.network, self._mask if self.masked else None)
            self.whole = True
        self.optimizer.zero_grad()
        self._done = step + 1
        if self.scaler is not None:
            self.scaler.update()
            norm = torch.where(torch.isfinite(norm), norm, 0.0)
        return loss, norm

    def _backward(self, batch: Batch, draw: Any) -> Tensor:
        """Add the gradient of the mean loss to those of the parameters; returns the mean loss."""
        k, total = self.settings.accumulate, None
        for i, (part, its_draw) in enumerate(_parts(batch, draw, k)):
            with contextlib.nullcontext() if i == k - 1 else _unsynchronised(self.model.network):
                loss = self.objective.loss(self.model, part, its_draw).mean()
                loss = loss if k == 1 else loss / k
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _clip(self) -> Tensor:
        """Clip the gradient to the norm that is allowed; returns its norm before that."""
        norms = torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None])
        self._norms = torch.stack(norms)
        norm = torch.linalg.vector_norm(self._norms)
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.grad_clip, norm)
        return whole(norm)

    def _leaves_out(self, norm: Tensor) -> bool:
        """Whether this update is left out. With a mask that is settled on the device, and the answer here is False."""
        stays = self.settings.on_nonfinite == "stop" and self.scaler is None      # the scaling of fp16 expects some
        if self.masked:
            bad = torch.logical_not(torch.isfinite(norm)).float()
            self._mask = torch.maximum(self._mask, bad) if stays else bad
            self.optimizer.grad_scale, self.optimizer.found_inf = None, self._mask
            self.skipped += self._mask.to(torch.int64)
            return False
        self._halted = (stays and self._halted) or not math.isfinite(float(norm))
        if self._halted:
            self.skipped += 1
        return self._halted

    def take_back(self, steps: int) -> None:
        """Forget the last updates, all of which were left out."""
        self.skipped -= steps
        self._mask.zero_()
        self._halted, self._done = False, self._done - steps

    def figures(self) -> dict[str, float]:
        """What the log tells of the last update: the norms of the gradient by group of layers if they are asked for, the
        scale of the loss in fp16, and how many updates were skipped.

        Raises ArithmeticError in fp16 if no scale gives gradients that are finite.
        """
        found = self.norms_by_group() if self.settings.log_groups else {}
        if self.scaler is not None:
            found["loss_scale"] = scale = self.scaler.get_scale()
            if scale < LEAST_SCALE:
                raise ArithmeticError(f"in fp16 the gradient is not finite at any scale of the loss, now {scale:.2g};"
                                      " set training.precision to bf16 or fp32, or lower training.learning_rate")
            found["skipped_updates"] = float(self.skipped)
        return found

    def norms_by_group(self) -> dict[str, float]:
        """The norm of the last gradient, before clipping, by the top-level children of the network: "grad_norm/<child>"."""
        if self._norms is None:
            return {}
        squares: dict[str, float] = {}
        names = [name for name, p in self.network.named_parameters() if p.requires_grad]
        if len(names) != len(self._norms):      # some took no part in the loss, and their names are not kept
            return {}
        for name, norm in zip(names, whole(self._norms).double().tolist(), strict=True):
            group = f"grad_norm/{name.partition('.')[0]}"
            squares[group] = squares.get(group, 0.0) + norm**2
        return {group: square**0.5 for group, square in squares.items()}

    def snapshot(self) -> dict[str, Any]:
        """The power-function averages, for a reconstruction of others after the training."""
        return {name: average.state() for name, average in self.averages.items() if isinstance(average, PowerEMA)}

    def state(self) -> dict[str, Any]:
        """The weights, and all that further updates depend on."""
        return {"network": self.network.state_dict(), "ema": self.ema.module.state_dict(),
                "ema_updates": self.ema.updates, "optimizer": state_of(self.optimizer, self.parameters),
                "averages": {name: average.state() for name, average in self.averages.items()},
                "schedule": self.rate.state(self._done), "skipped": int(self.skipped),
                "scaler": None if self.scaler is None else self.scaler.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, which also has the run's "step"; older ones have no averages, schedule or scaler."""
        self.ema.updates = state["ema_updates"]
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        if state["optimizer"] is not None and not restore_state(      # an imported checkpoint may have none
                self.optimizer, self.kind, self.parameters, state["optimizer"]):
            self.notes.append(f"the checkpoint holds the state of another optimizer than {self.settings.optimizer}, which "
                              "starts at its beginning")
        self._done = step = state["step"]
        stored = state.get("averages", {})
        for name, average in self.averages.items():
            if name in stored:
                average.restore(stored[name])
            else:
                average.start(self.network, step)
                self.notes.append(f"the average {name} starts at step {step}, since the checkpoint does not hold it")
        self.rate.restore(state.get("schedule"), step)
        self.skipped.fill_(state.get("skipped", 0))
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


def _parts(batch: Batch, draw: Any, k: int) -> Iterator[tuple[Batch, Any]]:
    """The batch and its draw in k parts of equal size."""
    if k == 1:
        yield batch, draw
        return
    n = len(batch.x)
    if n % k:
        raise ArgumentError(f"a process has {n} examples of a batch, which {k} equal parts (training.accumulate) do not "
                            "share out", "training.accumulate", "training.batch_size")
    for i in range(k):
        rows = slice(i * n // k, (i + 1) * n // k)
        yield _rows(batch, n, rows), _rows(draw, n, rows)


def _rows(value: Any, n: int, rows: slice) -> Any:
    """Those rows of every tensor in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != n:
            raise ArgumentError(f"training.accumulate splits what the objective draws for each of {n} examples, and it has "
                                f"drawn a tensor of shape {tuple(value.shape)}", "training.accumulate")
        return value[rows]
    if isinstance(value, Mapping):
        return {key: _rows(item, n, rows) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{field.name: _rows(getattr(value, field.name), n, rows)
                                             for field in dataclasses.fields(value) if field.init})
    if isinstance(value, list | tuple):
        items = [_rows(item, n, rows) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


@contextlib.contextmanager
def _unsynchronised(network: Any) -> Iterator[None]:
    """A part before the last: several processes average their gradients once an update, after the last part."""
    if hasattr(network, "no_sync"):      # DistributedDataParallel
        with network.no_sync():
            yield
    elif hasattr(network, "set_requires_gradient_sync"):      # fully_shard
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)
    else:
        yield
