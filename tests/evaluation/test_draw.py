import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import Dataset, make_codec, mixture_parameters
from scorefield.evaluation import draw, picture, plots, score
from scorefield.evaluation.report import report
from scorefield.models import GaussianMixture
from scorefield.samplers import make_sampler
from scorefield.sde_lib import VPSDE


def test_the_exact_model_of_points_scores_them_at_their_entropy():
    """Bits/dim of data under its own density is the entropy, here known to be that of 8 separate Gaussians."""
    means, variances, weights = mixture_parameters("gaussians8")
    model = GaussianMixture(VPSDE(), *map(torch.from_numpy, (means, variances, weights)))
    points = model.sample(400, generator=torch.Generator().manual_seed(0))
    data = Dataset("gaussians8", points, points, (2,), None, False)
    result = score(model, data, make_codec(None), batch_size=400, divergence="exact", rtol=1e-5, atol=1e-5)
    entropy = (math.log(8) + math.log(2 * math.pi * math.e * variances[0])) / (2 * math.log(2))
    assert abs(result.mean - entropy) < 4 * result.standard_error + 0.005
    assert result.nfe > 20 and len(result.bits_per_dim) == 400


def flat_data(n=12):
    k = torch.randint(0, 17, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", k, k, (1, 4, 4), 17, False)


def test_the_score_of_an_example_does_not_depend_on_its_batch_or_the_scaling():
    """Uniform integers have log2 17 bits each; a broad Gaussian model says a little more, the same in every scaling."""
    results = []
    for low, high in ((-1.0, 1.0), (0.0, 1.0)):
        centre, variance = (low + high) / 2, (high - low) ** 2 / 12
        model = GaussianMixture(VPSDE(), torch.full((1, 16), centre), torch.tensor([variance]))
        for batch_size in (12, 5):
            results.append(score(model, flat_data(), make_codec(17, low, high), batch_size=batch_size, divergence="exact",
                                 rtol=1e-6, atol=1e-6).bits_per_dim)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=5e-3)      # the priors fit alike, not equally
    assert math.log2(17) < float(results[0].mean()) < math.log2(17) + 0.4


def test_a_number_of_examples_and_a_split_can_be_chosen():
    model = GaussianMixture(VPSDE(), torch.zeros(1, 16), torch.tensor([0.3]))
    data = flat_data()
    other = Dataset("noise", data.train.data[:3], data.test, (1, 4, 4), 17, False)
    assert len(score(model, other, make_codec(17), n=5, divergence="exact", rtol=1e-2, atol=1e-2).bits_per_dim) == 5
    assert len(score(model, other, make_codec(17), "train", n=5, divergence="exact", rtol=1e-2, atol=1e-2).bits_per_dim) == 3


def test_samples_are_the_same_for_any_batch_size_and_their_cost_is_counted():
    model = GaussianMixture(VPSDE(), torch.eye(2), torch.full((2,), 0.1))
    sampler = make_sampler("euler_maruyama", steps=15)
    one, three = (draw(model, sampler, (2,), 7, seed=4, batch_size=b, progress=False) for b in (7, 3))
    torch.testing.assert_close(one.x, three.x, rtol=1e-5, atol=1e-5)
    assert one.nfe == three.nfe == 15 and one.x.shape == (7, 2)


def test_a_grid_of_images_puts_each_where_it_belongs(tmp_path):
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 8, 8) * 4      # levels 0 to 16
    grid = plots.image_grid(images, 17)
    assert grid.shape == (3, 2 * 42 + 2, 3 * 42 + 2)
    for i in range(5):
        top, left = 2 + i // 3 * 42, 2 + i % 3 * 42
        assert (grid[:, top:top + 40, left:left + 40] == round(255 * i / 4)).all()
    plots.save_png(tmp_path / "grid.png", grid)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid.permute(1, 2, 0).numpy())


def test_pictures_of_points_leave_matplotlib_as_it_was():
    import matplotlib
    from matplotlib import pyplot

    backend = matplotlib.get_backend()
    assert plots.points_over_data(torch.randn(5, 2), torch.randn(9, 2)).shape == (3, 600, 600)
    assert matplotlib.get_backend() == backend and not pyplot.get_fignums()


def test_samples_are_shown_as_the_codec_decodes_them():
    x = torch.linspace(-1, 1, 17).view(17, 1, 1, 1).expand(17, 1, 8, 8)
    grid = plots.image_grid(torch.arange(17, dtype=torch.uint8).view(17, 1, 1, 1).expand(17, 1, 8, 8), 17)
    assert torch.equal(picture(x, make_codec(17)), grid)
    assert picture(torch.randn(5, 2), make_codec(None)).shape == (3, 600, 600)


def test_the_report_has_a_row_for_each_result(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        report(tmp_path)
    (tmp_path / "stats.jsonl").write_text(
        json.dumps({"step": 1, "loss": 0.5, "seconds": 2.0, "held_out_loss": 0.75}) + "\n"
        + json.dumps({"step": 2, "loss": 0.25, "seconds": 4.0}) + "\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/ode.json").write_text(
        json.dumps({"sampler": "ode", "num_samples": 9, "nfe": 44, "seconds": 1.5}))
    (tmp_path / "likelihood").mkdir()
    (tmp_path / "likelihood/summary.json").write_text(json.dumps(
        {"bits_per_dim": 1.9, "standard_error": 0.01, "num_images": 360, "split": "test", "nfe": 98.5, "seconds": 20}))
    table = report(tmp_path).splitlines()
    assert len({len(line) for line in table}) == 1 and len(table) == 5
    assert "step 2, loss 0.2500, held out 0.7500" in table[2] and "| 44 " in table[3]
    assert "1.9000 +- 0.0100 bits/dim, 360 test examples" in table[4] and "98.5" in table[4]
