"""Noise schedules, as discrete lists: linear, scaled linear, cosine, sigmoid (betas of a DDPM chain) and geometric
(sigmas of SMLD).

All return float64 tensors of shape (steps,). Their continuous-time limits are the SDEs of vp.py and ve.py, where
beta(t) = steps * beta_i at t = (i + 1) / steps.
"""

import math

import torch
from torch import Tensor


def linear_betas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """beta_i from beta_min/steps to beta_max/steps (Ho et al. 2020: 1e-4 to 0.02 at 1000 steps)."""
    return torch.linspace(beta_min, beta_max, _positive(steps), dtype=torch.float64) / steps


def scaled_linear_betas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """beta_i from beta_min/steps to beta_max/steps, whose square roots are equally spaced (Rombach et al. 2022)."""
    ends = math.sqrt(beta_min), math.sqrt(beta_max)
    return torch.linspace(*ends, _positive(steps), dtype=torch.float64).square() / steps


def cosine_betas(steps: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """1 - alpha_bar(t_i) / alpha_bar(t_(i-1)), alpha_bar(t) = cos^2(pi/2 (t + s)/(1 + s)), at most `max_beta`.

    Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", equation 17.
    """
    t = torch.arange(_positive(steps) + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos(math.pi / 2 * (t + s) / (1 + s)).square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


def sigmoid_betas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0, span: float = 6.0) -> Tensor:
    """beta_min/steps plus (beta_max - beta_min)/steps times a logistic curve over [-span, span] (GeoDiff, Xu 2022)."""
    curve = torch.linspace(-span, span, _positive(steps), dtype=torch.float64).sigmoid()
    return (beta_min + (beta_max - beta_min) * curve) / steps


def geometric_sigmas(steps: int, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Tensor:
    """sigma_i in geometric progression from sigma_min to sigma_max (Song and Ermon 2019), least noise first."""
    exponent = torch.linspace(0, 1, _positive(steps), dtype=torch.float64)
    return sigma_min * (sigma_max / sigma_min) ** exponent


def _positive(steps: int) -> int:
    if not 1 <= steps <= 10**6:
        raise ValueError(f"a schedule needs 1 to {10**6:,} steps, got {steps}")
    return steps


BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas, "sigmoid": sigmoid_betas}
