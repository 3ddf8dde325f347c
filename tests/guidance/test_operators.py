"""Operators: adjoints, pseudo-inverses, and what each measures."""

import numpy as np
import pytest
import torch

from scorefield.guidance.operators import (
    OPERATORS,
    Convolution,
    Function,
    Matrix,
    Selection,
    Separable,
    make_operator,
)
from scorefield.numerics.errors import ArgumentError
from scorefield.numerics.pictures import resampling_matrix

LINEAR = [("mask", (3, 8, 8)), ("mask:half=left", (8,)), ("mask:half=bottom", (1, 8, 6)), ("mask:random=0.4", (3, 8, 8)),
          ("mask:box=0.3", (5, 9)), ("grey", (3, 8, 8)), ("grey:weights=(0.3,0.6,0.1)", (3, 4, 4)), ("identity", (4,)),
          ("downsample:factor=2", (1, 8, 8)), ("downsample:factor=2:kernel=bicubic", (3, 8, 8)),
          ("downsample:factor=4:kernel=linear:antialias=false", (3, 16, 8)), ("blur:std=0.8", (1, 8, 8)),
          ("motion:length=5:angle=30", (2, 8, 7)), ("radon:angles=6", (1, 8, 8)), ("matrix", (2, 3)), ("kernel", (1, 5, 6))]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=LINEAR, ids=lambda case: case[0])
def operator(request, tmp_path):
    text, shape = request.param
    if text in ("matrix", "kernel"):
        np.save(tmp_path / "a.npy", random(*((4, 6) if text == "matrix" else (3, 5))).numpy())
        text = f"{text}:path={tmp_path / 'a.npy'}"
    return make_operator(text, shape)


def test_the_adjoint_passes_the_dot_product_test(operator):
    x, y = random(3, *operator.shape), random(3, *operator.measured, seed=1)
    torch.testing.assert_close((operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1))


def test_the_pseudo_inverse_is_moores_and_penroses(operator):
    a = operator.dense()
    y = random(3, *operator.measured)
    torch.testing.assert_close(operator.pseudo_inverse(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(a, rtol=1e-5).T,
                               rtol=1e-6, atol=1e-7)


def test_functions_of_the_gram_matrix_are_those_of_its_eigenvalues(operator):
    y, a = random(2, *operator.measured), operator.dense()
    solved = torch.linalg.solve(0.7 * a @ a.T + 0.3 * torch.eye(len(a)), y.flatten(1).T).T
    torch.testing.assert_close(operator.filtered(y, 1 / (0.7 * operator.eigenvalues + 0.3)).flatten(1), solved)
    torch.testing.assert_close(operator.eigenvalues.flatten().sort().values, torch.linalg.eigvalsh(a @ a.T), rtol=0,
                               atol=1e-9)


def test_consistent_data_have_the_measurement(operator):
    x = random(3, *operator.shape)
    y = operator(random(3, *operator.shape, seed=2))
    moved = operator.consistent(x, y)
    torch.testing.assert_close(operator(moved), y, rtol=0, atol=1e-7)
    torch.testing.assert_close(operator.consistent(moved, y), moved, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mode, antialias, factor", [("bicubic", True, 2), ("bicubic", True, 4), ("bilinear", True, 2),
                                                     ("bicubic", False, 2), ("bicubic", False, 4), ("bilinear", False, 4)])
def test_downsampling_is_that_of_pytorch(mode, antialias, factor):
    x = random(1, 2, 16, 8)
    kernel = {"bicubic": "bicubic", "bilinear": "linear"}[mode]
    operator = make_operator(f"downsample:factor={factor}:kernel={kernel}:antialias={antialias}", (2, 16, 8))
    torch.testing.assert_close(operator(x), torch.nn.functional.interpolate(x, scale_factor=1 / factor, mode=mode,
                                                                            antialias=antialias))


def test_box_downsampling_is_the_mean_of_blocks():
    x = random(1, 1, 6, 6)
    torch.testing.assert_close(make_operator("downsample:factor=3", (1, 6, 6))(x), torch.nn.functional.avg_pool2d(x, 3))
    assert resampling_matrix(6, 3).sum(1).tolist() == pytest.approx([1, 1])


def test_a_blur_spreads_a_point_as_its_kernel():
    point = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    point[0, 0, 4, 4] = 1
    kernel = torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(Convolution((1, 9, 9), kernel)(point)[0, 0, 3:6, 3:6], kernel.double())
    flat = make_operator("motion:length=5", (1, 9, 9))(point)[0, 0]
    assert float(flat[4].sum()) == pytest.approx(1) and float(flat.sum()) == pytest.approx(1)
    assert float(make_operator("motion:length=5:angle=90", (1, 9, 9))(point)[0, 0, :, 4].sum()) == pytest.approx(1)


def test_projections_at_right_angles_are_the_sums_of_columns_and_rows():
    x = random(1, 1, 6, 6)
    y = make_operator("radon:angles=2", (1, 6, 6))(x)[0]
    torch.testing.assert_close(y, torch.cat([x[0, 0].sum(0), x[0, 0].sum(1)]))


def test_masks_hide_what_they_say(tmp_path):
    from PIL import Image

    assert make_operator("mask:half=right", (1, 2, 4)).keep.int().tolist() == [[[1, 1, 0, 0]] * 2]
    assert make_operator("mask:half=top", (1, 2, 2)).keep.int().tolist() == [[[0, 0], [1, 1]]]
    box = make_operator("mask:box=0.5", (4, 4)).keep.int().tolist()
    assert box == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    random_mask = make_operator("mask:random=0.25", (3, 4, 4), seed=1)
    assert int((~random_mask.keep).sum()) == 3 * 4 and bool((random_mask.keep[0] == random_mask.keep[2]).all())
    assert not torch.equal(random_mask.keep, make_operator("mask:random=0.25", (3, 4, 4), seed=2).keep)
    Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert make_operator(f"mask:path={tmp_path / 'mask.png'}", (1, 2, 2)).keep.int().tolist() == [[[0, 1], [1, 1]]]


def test_any_differentiable_function_is_an_operator_without_an_adjoint():
    operator = Function(lambda x: x.square().sum(1, keepdim=True), (3,))
    assert operator.measured == (1,) and not operator.linear
    with pytest.raises(ArgumentError, match="not linear"):
        operator.adjoint(torch.zeros(1, 1))
    with pytest.raises(ArgumentError, match="must return"):
        Function(lambda x: x.sum(), (3,))


BAD = [("mask:box=1", (4, 4), "share between 0 and 1"), ("mask:box=0.01", (4, 4), "keeps 16 of 16"),
       ("mask:half=middle", (4, 4), "half must be one of"), ("mask:half=top", (4,), "left, right, got"),
       ("mask:box=0.5:half=left", (4, 4), "one of box"), ("mask:path=none.png", (4, 4), "no file none.png"),
       ("downsample:factor=3", (1, 8, 8), "divide both sides"), ("downsample:kernel=lanczos", (1, 8, 8), "unknown kernel"),
       ("downsample", (8,), "for pictures"), ("grey", (1, 8, 8), "have one"),
       ("grey:weights=(1,2)", (3, 8, 8), "so many weights"),
       ("blur:std=2", (1, 8, 8), "larger than the picture"), ("blur:std=-1", (1, 8, 8), "must be positive"),
       ("motion:length=4", (1, 8, 8), "odd"), ("radon", (3, 8, 8), "one channel"), ("matrix", (4,), "path=FILE.npy"),
       ("masks", (4,), "unknown operator 'masks'.*did you mean 'mask'"), ("mask:size=3", (4,), "takes box=VALUE")]


@pytest.mark.parametrize("text, shape, message", BAD, ids=lambda value: str(value)[:20])
def test_what_does_not_fit_is_refused_in_one_line(text, shape, message):
    with pytest.raises((ArgumentError, FileNotFoundError), match=message) as caught:
        make_operator(text, shape)
    assert "operator" in caught.value.arguments and "\n" not in str(caught.value)


def test_files_that_hold_no_matrix_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(ArgumentError, match="cannot be read"):
        make_operator(f"matrix:path={tmp_path / 'a.npy'}", (2,))
    np.save(tmp_path / "b.npy", np.ones(3))
    with pytest.raises(ArgumentError, match="two dimensions"):
        make_operator(f"kernel:path={tmp_path / 'b.npy'}", (1, 4, 4))
    with pytest.raises(ArgumentError, match=r"is \(m, 2\)"):
        Matrix(torch.ones(1, 3), (2,))


def test_events_and_measurements_of_another_shape_are_refused():
    operator = make_operator("mask:half=left", (4,))
    with pytest.raises(ArgumentError, match="events of shape"):
        operator(torch.zeros(1, 5))
    with pytest.raises(ArgumentError, match=r"\(batch, 2\)"):
        operator.adjoint(torch.zeros(1, 3))


def test_every_word_is_tested_here():
    assert set(OPERATORS) == {text.partition(":")[0] for text, _ in LINEAR}
    assert {Selection, Separable, Convolution, Matrix} <= {type(make_operator(text, shape)) for text, shape in LINEAR[:-2]}
