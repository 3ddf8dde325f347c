"""Noise schedules, as discrete lists: the betas of a DDPM chain, and the sigmas of SMLD.

All return float64 tensors of shape (steps,). Their continuous-time limits are SDEs, some of them in vp.py and ve.py, where
beta(t) = steps * beta_i at t = (i + 1) / steps. Two names need care. `cosine` has a cosine in alpha_bar (Nichol and Dhariwal
2021), `cosine_beta` one in beta, as courses teach it. `sigmoid` has a logistic curve in beta (GeoDiff), `sigmoid_alpha` one
in alpha_bar (Chen 2023).
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


def cosine_beta_betas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """beta_i = b + (B - b)(1 - cos(pi i/T))/2 for i = 1 .. T, with b = beta_min/steps and B = beta_max/steps."""
    index = torch.arange(1, _positive(steps) + 1, dtype=torch.float64)
    return (beta_min + (beta_max - beta_min) * torch.sin(math.pi / 2 * index / steps).square()) / steps


def geometric_beta_betas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """beta_i in geometric progression from beta_min/steps to beta_max/steps: beta_1 gamma^(i - 1)."""
    return geometric_sigmas(steps, beta_min, beta_max) / steps


def sigmoid_alpha_betas(steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
                        ) -> Tensor:
    """1 - alpha_bar(t_i) / alpha_bar(t_(i-1)), at most `max_beta`, for a logistic alpha_bar from 1 to 0:

    alpha_bar(t) = [s(end) - s(start + t (end - start))] / [s(end) - s(start)], s(u) = sigmoid(u / tau)

    Chen 2023, "On the Importance of Noise Scheduling for Diffusion Models", algorithm 1.
    """
    if not (start < end and tau > 0):
        raise ValueError(f"a sigmoid schedule needs start < end and tau > 0, got {start}, {end} and {tau}")
    u = torch.linspace(start, end, _positive(steps) + 1, dtype=torch.float64) / tau
    drop = -u.diff() / 2      # s(a) - s(b) = sinh((a - b)/2) / (2 cosh(a/2) cosh(b/2)), free of cancellation
    left = torch.sinh((u[-1] - u) / 2) / torch.cosh(u / 2)      # alpha_bar up to a factor
    lost = torch.sinh(-drop) * math.cosh(end / tau / 2) / (torch.cosh(u[1:] / 2) * torch.cosh(u[:-1] / 2))
    return (lost / left[:-1]).clamp(max=max_beta)


def geometric_sigmas(steps: int, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Tensor:
    """sigma_i in geometric progression from sigma_min to sigma_max (Song and Ermon 2019), least noise first."""
    exponent = torch.linspace(0, 1, _positive(steps), dtype=torch.float64)
    return sigma_min * (sigma_max / sigma_min) ** exponent


def _positive(steps: int) -> int:
    if not 1 <= steps <= 10**6:
        raise ValueError(f"a schedule needs 1 to {10**6:,} steps, got {steps}")
    return steps


BETAS = {
    "linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas, "cosine_beta": cosine_beta_betas,
    "geometric_beta": geometric_beta_betas, "sigmoid": sigmoid_betas, "sigmoid_alpha": sigmoid_alpha_betas,
}
