"""What guidance does to a density: `python -m benchmarks.guidance_density` draws docs/images/guidance_density.png.

The data are an exact labelled mixture in the plane, so classifier-free guidance and guidance by the exact classifier are the
same. Drawn are samples of the probability flow at scales 0, 1, 2 and 4, with contours of the exact densities at t = 0: grey
of all data (scale 0), red of the class (scale 1). Prints for each scale the mean, the total variance and the share of
samples that the exact classifier takes for the class.
"""

from pathlib import Path

import numpy as np
import torch

from scorefield.guidance import classifier_free
from scorefield.models import GaussianMixture
from scorefield.samplers import make_sampler, prior_sample
from scorefield.sde_lib import VPSDE

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "guidance_density.png"
SCALES, N, LABEL, HALF = (0.0, 1.0, 2.0, 4.0), 20_000, 1, 2.6


def labelled() -> GaussianMixture:
    """Two classes that overlap: each has two components, side by side with one of the other."""
    means = torch.tensor([[-1.2, 0.7], [-0.1, -0.9], [0.1, 0.9], [1.2, -0.7]])
    return GaussianMixture(VPSDE(), means, torch.full((4,), 0.16), labels=[0, 0, 1, 1])


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model, sampler = labelled(), make_sampler("auto", steps=60)
    x_T = prior_sample(model.sde, (2,), range(N), dtype=torch.float64)
    axis = np.linspace(-HALF, HALF, 161)
    points = torch.from_numpy(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    every, of_class = (m.log_prob(points).exp().reshape(161, 161).numpy() for m in (model, model.given(label=LABEL)))
    figure, axes = plt.subplots(1, len(SCALES), figsize=(11, 3.1), sharey=True, layout="constrained")
    print("| scale | mean | total variance | recognised |\n|---|---|---|---|")
    for panel, scale in zip(axes, SCALES, strict=True):
        x = sampler(classifier_free(model, scale, label=LABEL), x_T).x
        share = float((model.class_log_prob(x, model.sde.t_sample).argmax(1) == LABEL).double().mean())
        mean, total = x.mean(0).tolist(), float(x.var(0).sum())
        print(f"| {scale:g} | ({mean[0]:.3f}, {mean[1]:.3f}) | {total:.3f} | {share:.4f} |")
        panel.hist2d(*x.T.numpy(), bins=np.linspace(-HALF, HALF, 79), cmap="Blues", density=True, vmax=every.max() * 2.2)
        for density, colour in ((every, "0.55"), (of_class, "tab:red"))[:1 if scale == 0 else 2]:
            panel.contour(axis, axis, density, levels=density.max() * np.array([0.1, 0.5]), colors=colour, linewidths=0.9)
        name = {0.0: ": all data", 1.0: ": the class"}.get(scale, "")
        panel.set_title(f"scale {scale:g}{name}", fontsize=10)
        panel.set_xlabel(f"recognised {share:.1%}, variance {total:.2f}", fontsize=9)
        panel.set(aspect="equal", xticks=[], yticks=[])
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
