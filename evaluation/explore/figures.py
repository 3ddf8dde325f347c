"""Figures of curves and clouds for the pictures of the papers, as pictures (3, height, width)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.evaluation import plots
from scorefield.evaluation.explore.rate_distortion import RateDistortion
from scorefield.evaluation.explore.schedule import Curves
from scorefield.evaluation.explore.schedule import schedule as schedule_of
from scorefield.evaluation.explore.sheets import FONT, PANEL, Looks, paint
from scorefield.sde_lib import VPSDE, CosineVPSDE

SIDE = 3.1      # inches of a panel of curves


def curve_panels(columns: int, title: str = "") -> tuple[Any, Any]:
    """A figure with a row of axes for curves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIDE * columns, SIDE), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.25)
    return figure, axes


def schedule_figure(curves: Curves, title: str) -> Tensor:
    """alpha and sigma, alpha_bar, the log-SNR, and g^2 over t; in grey those of the VP and the cosine process."""
    figure, axes = curve_panels(4, title)
    t = curves.times.numpy()
    axes[0].plot(t, curves.alpha.numpy(), label="alpha")
    axes[0].plot(t, curves.sigma.numpy(), label="sigma")
    if float(curves.sigma.max()) > 10 * float(curves.alpha.max()):
        axes[0].set_yscale("log")
    axes[0].legend(fontsize=8)
    axes[0].set_title("scale of signal and noise", fontsize=9)
    axes[1].plot(t, curves.alpha.square().numpy(), label="this run", zorder=3)
    axes[2].plot(t, curves.log_snr.numpy(), zorder=3)
    for name, sde, style in (("vp, linear", VPSDE(), "-"), ("cosine", CosineVPSDE(), "--")):
        other = schedule_of(sde)
        axes[1].plot(other.times.numpy(), other.alpha.square().numpy(), style, c="0.65", lw=1, label=name)
        axes[2].plot(other.times.numpy(), other.log_snr.numpy(), style, c="0.65", lw=1)
    axes[1].legend(fontsize=8)
    axes[1].set_title("alpha_bar = alpha$^2$", fontsize=9)
    axes[2].set_title("log SNR", fontsize=9)
    if curves.betas is None:
        finite = torch.isfinite(curves.g2)
        axes[3].plot(t[finite.numpy()], curves.g2[finite].numpy())
        axes[3].set_title("beta(t) = g$^2$ per unit of time", fontsize=9)
        spread = curves.g2[finite & (curves.g2 > 0)]
    else:
        axes[3].plot(torch.arange(len(curves.betas)).numpy(), curves.betas.numpy())
        axes[3].set_title("beta of each step of the chain", fontsize=9)
        spread = curves.betas
    if float(spread.max()) > 300 * float(spread.min()):
        axes[3].set_yscale("log")
    for axis in axes:
        axis.set_xlabel("t", fontsize=9)
        axis.tick_params(labelsize=8)
    if curves.betas is not None:
        axes[3].set_xlabel("index", fontsize=9)
    return plots.render(figure)


def rate_distortion_figure(curve: RateDistortion, unit: str, title: str = "") -> Tensor:
    """Distortion and rate by t, and distortion by rate (Ho et al. 2020, figure 5). `unit` of the distortion, in words."""
    figure, axes = curve_panels(3, title)
    t, rate, distortion = (values.numpy() for values in (curve.times, curve.rate, curve.distortion))
    axes[0].plot(t, distortion)
    axes[0].set(xlabel="t", ylabel=f"distortion: RMSE in {unit}")
    axes[1].plot(t, rate)
    axes[1].axhline(curve.total, c="0.6", ls="--", lw=1, label="the whole bound")
    axes[1].set(xlabel="t", ylabel="rate: bits/dim")
    axes[1].legend(fontsize=8)
    for axis in axes[:2]:
        axis.invert_xaxis()      # as the sender goes on
    axes[2].plot(rate, distortion, ".-", ms=2.5, lw=1)
    axes[2].set(xlabel="rate: bits/dim", ylabel=f"distortion: RMSE in {unit}")
    return plots.render(figure)


def cloud_rows(rows: Sequence[Sequence[Tensor]], looks: Looks, names: Sequence[str], columns: Sequence[str],
               arrows: tuple[Tensor, Sequence[Tensor]] | None = None, title: str = "",
               behind: Tensor | None = None) -> Tensor:
    """Rows of clouds of points in the plane, and one of arrows: places, and for each column the directions there, whose
    colour says how long they are, from dark to light, within a panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    wide, tall = len(columns), len(rows) + (arrows is not None)
    width, height = 1.15 * PANEL * wide + 0.4, 1.15 * PANEL * tall + 0.3 + 0.25 * bool(title)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
    for i, row in enumerate(rows):
        for axis, cell in zip(axes[i], row, strict=True):
            paint(axis, cell, looks, behind, ("tab:blue", "tab:red")[i % 2])
    if arrows is not None:
        places, directions = arrows
        for axis, direction in zip(axes[-1], directions, strict=True):
            size = direction.double().norm(dim=1).clamp(min=1e-300)
            axis.quiver(*places.T.numpy(), *(direction / size[:, None]).T.numpy(), size.log().numpy(), cmap="viridis",
                        pivot="mid", width=0.008, scale=20)
            paint(axis, places[:0], looks)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=FONT + 1)
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.set_ylabel(name, fontsize=FONT + 1)
    if title:
        figure.suptitle(title, fontsize=FONT + 2)
    return plots.render(figure)


def stacked(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures (3, height, width) one below the other, on white."""
    width = max(picture.shape[2] for picture in pictures)
    padded = []
    for picture in pictures:
        left = (width - picture.shape[2]) // 2
        padded.append(torch.nn.functional.pad(picture, (left, width - picture.shape[2] - left), value=255))
    return torch.cat(padded, 1)
