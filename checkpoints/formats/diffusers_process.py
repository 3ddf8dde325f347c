"""The scheduler of a folder of diffusers: its betas or sigmas, and what they say of the network's time and output.

The scheduler's betas are the chain "ddpm"; its indices are the network's time input, and prediction_type is the
parametrization. A ScoreSdeVeScheduler is the SDE "ve": the network's time input is sigma, of which a Fourier embedding
takes the logarithm, and the data lie in [0, 1].
"""

from pathlib import Path
from typing import Any

import torch

from scorefield.checkpoints.checkpoint import Config
from scorefield.models.build import complete
from scorefield.numerics.files import read_json
from scorefield.sde_lib.sde import SDE

WHOLE, NUMBER = (int,), (int, float)
# Fields of schedulers that can change the process that the betas define, and the value with which they do not.
PLAIN = {"rescale_betas_zero_snr": False, "use_flow_sigmas": False, "timestep_type": "discrete", "snr_shift_scale": 1.0}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
LEARNED = "learned_range"      # the variance_type of a network with model.learned_variance
# The SDEs that a scheduler can express, each with the network's time input.
CHAINS = {("ddpm", "index"), ("vp", "999t"), ("cosine", "999t"), ("sigmoid", "999t")}
# For the SDE "ve": time input, parametrization, and whether the embedding is Fourier's.
VE_READINGS = {("log_sigma", "eps", True), ("sigma", "score", False)}


def require_one_of(path: Path, field: str, value: Any, *allowed: Any) -> None:
    """ValueError unless the field of a file has one of the values that can be imported."""
    if value not in allowed:
        raise ValueError(f"{path}: {field} = {value!r:.200} cannot be imported, only {' or '.join(map(repr, allowed))}")


def refusal(section: str, field: str, value: Any, reason: str) -> ValueError:
    """The error of a setting that a folder of diffusers cannot hold."""
    return ValueError(f"cannot export to diffusers with {section}.{field} = {value!r:.100}: {reason}")


def told_process(folder: Path, scheduler: Path | None, given: Config, fourier: bool, learned: bool, strict: bool = True
                 ) -> tuple[dict[str, Any], Config]:
    """What the scheduler's config says, see `read_process`, or `given` where there is none; and what of `given` has to agree
    with the folder. ValueError if neither says it.
    """
    sde = (given.get("sde") or {}).get("name")
    if scheduler is not None:
        return read_process(scheduler, fourier, learned, strict), given
    if sde is None:
        raise ValueError(f"{folder} has no scheduler_config.json, which defines the chain; put it beside config.json, or "
                         "set the chain, such as sde.name=ddpm, sde.schedule=linear and sde.steps=1000")
    process = {"sde": {"name": sde}, "data": {"low": 0.0 if fourier else -1.0},
               "model": {"parametrization": "eps", "time_input": "log_sigma" if fourier else "index"}}
    untold = ("parametrization", "time_input", "input_std")
    return process, {"model": {k: v for k, v in (given.get("model") or {}).items() if k not in untold}}


def read_process(path: Path, fourier: bool, learned: bool, strict: bool = True) -> dict[str, Any]:
    """The SDE, and the network's time input and parametrization, from a scheduler's config.

    learned  whether the network gives a variance, too
    strict   whether the scheduler must know of that; a DiTPipeline's does not
    """
    config = read_json(path, "; fetch it again")
    kind = config.get("variance_type")
    if (learned and strict) or kind in ("learned", "learned_range"):
        require_one_of(path, "variance_type", kind, LEARNED if learned else "fixed_small")

    def number(field: str, kinds: tuple[type, ...] = NUMBER) -> float:
        if type(value := config.get(field)) not in kinds:
            raise ValueError(f"{path}: {field} = {value!r:.100} is not a number; the file is damaged, or its scheduler has "
                             "no betas: put the file of a DDPMScheduler there")
        try:
            return float(config[field])
        except OverflowError:
            raise ValueError(f"{path} is damaged: {field} is too large a number; fetch it again") from None

    if config.get("_class_name") == "ScoreSdeVeScheduler":
        time_input, parametrization, _ = next(way for way in VE_READINGS if way[2] == fourier)
        return {"sde": {"name": "ve", "sigma_min": number("sigma_min"), "sigma_max": number("sigma_max")},
                "model": {"parametrization": parametrization, "time_input": time_input}, "data": {"low": 0.0, "high": 1.0}}
    if fourier:      # UNet2DModel divides its output by its time input
        require_one_of(path, "_class_name", config.get("_class_name"), "ScoreSdeVeScheduler")
    for field, value in PLAIN.items():
        require_one_of(path, field, config.get(field, value), value)
    require_one_of(path, "prediction_type", prediction := config.get("prediction_type", "epsilon"), *PREDICTIONS)
    steps, betas = int(number("num_train_timesteps", WHOLE)), config.get("trained_betas")
    if betas is None:
        require_one_of(path, "beta_schedule", schedule := config.get("beta_schedule"), *SCHEDULES)
        sde = {"name": "ddpm", "schedule": SCHEDULES[str(schedule)], "steps": steps}
        if schedule != "squaredcos_cap_v2":
            sde |= {"beta_min": steps * number("beta_start"), "beta_max": steps * number("beta_end")}
    elif isinstance(betas, list) and len(betas) == steps and all(type(beta) in NUMBER for beta in betas):
        sde = {"name": "ddpm", "betas": tuple(map(float, betas))}
    else:
        raise ValueError(f"{path} is damaged: trained_betas are not {steps} numbers (num_train_timesteps); fetch it again")
    return {"sde": sde, "model": {"parametrization": PREDICTIONS[prediction], "time_input": "index"}}


def write_process(config: Config, sde: SDE, fourier: bool) -> tuple[str, dict[str, Any]]:
    """The pipeline's class, and the content of scheduler_config.json."""
    model, data, name = config["model"], config.get("data") or {}, config["sde"]["name"]
    time_input, parametrization = model["time_input"], model["parametrization"]
    exploding = name == "ve" and (time_input, parametrization, fourier) in VE_READINGS
    chain = (name, time_input) in CHAINS and parametrization in PREDICTIONS.values() and not fourier
    if not exploding and not chain:
        place = ("sde", "name", name) if name in ("subvp", "smld") else ("model", "time_input", time_input)
        raise refusal(*place, f"no scheduler can express {name} with {time_input}, {parametrization} and "
                       f"{'Fourier' if fourier else 'positional'} embedding; they can express ddpm with index, and vp, "
                       "cosine and sigmoid with 999t, each with eps, x0 or v, positional; and ve with log_sigma, eps, "
                       "Fourier, or with sigma, score, positional")
    if model.get("energy"):
        raise refusal("model", "energy", True, "diffusers' networks give a prediction, not the gradient of a scalar")
    if model.get("variance_output", "share") != "share":
        raise refusal("model", "variance_output", model["variance_output"], "diffusers' schedulers read a share of log beta")
    if model.get("input_std") is not None:
        raise refusal("model", "input_std", model["input_std"], "diffusers' pipelines give x to the network unscaled")
    ends = data.get("low", -1.0), data.get("high", 1.0)
    if ends != (0.0 if exploding else -1.0, 1.0):
        raise refusal("data", "low, data.high", ends, "diffusers' pipeline assumes that the data lie in "
                       f"[{0 if exploding else -1}, 1]")
    settings = {field: value for field, value in complete(config)["sde"].items() if field != "name"}
    if exploding:
        return "ScoreSdeVePipeline", {"_class_name": "ScoreSdeVeScheduler", "correct_steps": 1, "num_train_timesteps": 2000,
                                      "sampling_eps": 1e-5, "snr": 0.15, **settings}
    scheduler = {"_class_name": "DDPMScheduler", "clip_sample": True,
                 "variance_type": LEARNED if model.get("learned_variance") else "fixed_large",
                 "prediction_type": next(theirs for theirs, ours in PREDICTIONS.items() if ours == parametrization)}
    betas = settings["betas"] if name == "ddpm" else _betas_of_labels(sde)
    if betas is not None:
        return "DDPMPipeline", scheduler | {"num_train_timesteps": len(betas), "trained_betas": list(betas)}
    schedule, steps = settings["schedule"], settings["steps"]
    return "DDPMPipeline", scheduler | {
        "num_train_timesteps": steps, "beta_start": (settings["beta_min"] or 0.1) / steps,
        "beta_end": (settings["beta_max"] or 20.0) / steps,
        "beta_schedule": next(theirs for theirs, ours in SCHEDULES.items() if ours == schedule)}


def _betas_of_labels(sde: SDE) -> list[float]:
    """The betas of the chain whose index i is the label 999 t of the network: t = i / 999, and t_min for i = 0.

    The chain is exact except at i = 0, where the network gets the label 0 instead of 999 t_min = 0.01.
    """
    log_alpha = sde.log_alpha((torch.arange(1000, dtype=torch.float64) / 999).clamp(min=sde.t_min))
    return (-torch.expm1(2 * torch.diff(log_alpha, prepend=log_alpha.new_zeros(1)))).tolist()
