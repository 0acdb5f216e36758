# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import soft_ncut as benchmark
from training.losses.gaussian_ncut import gaussian_ncut
from training.losses.soft_ncut import soft_ncut

pytestmark = pytest.mark.slow

LOSSES = [soft_ncut, gaussian_ncut]
Loss = Callable[..., torch.Tensor]


def spatial_weights(height: int, width: int, radius: float, sigma: float) -> NDArray[np.float64]:
    """[N, N] over all pairs of pixels."""
    rows, columns = np.divmod(np.arange(height * width), width)
    squares = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    return np.where(np.sqrt(squares) < radius, np.exp(-squares / sigma**2), 0)


def dense(
    probabilities: torch.Tensor,
    features: torch.Tensor,
    radius: float = 5,
    sigma_intensity: float = 10.0,
    sigma_space: float = 4.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """J [B] and its gradient [B, K, H, W] with all N x N weights, in float64."""
    cuts, slopes = [], []
    for p, f in zip(
        probabilities.detach().double().numpy(), features.double().numpy(), strict=True
    ):
        weights = spatial_weights(*p.shape[1:], radius, sigma_space)
        for colour in f.reshape(len(f), -1):
            weights *= np.exp(-(np.subtract.outer(colour, colour) ** 2) / sigma_intensity**2)
        flat = p.reshape(len(p), -1)
        cut, slope = float(len(p)), np.zeros_like(flat)
        for k, of_class in enumerate(flat):
            inner, degree = of_class @ weights @ of_class, weights.sum(1) @ of_class
            if degree:
                cut -= inner / degree
                slope[k] = inner * weights.sum(1) / degree**2 - 2 * weights @ of_class / degree
        cuts.append(cut)
        slopes.append(slope.reshape(p.shape))
    return np.array(cuts), np.array(slopes)


def slow_gaussian(
    probabilities: torch.Tensor,
    features: torch.Tensor,
    radius: float = 5,
    sigma_intensity: float = 10.0,
    sigma_space: float = 4.0,
) -> NDArray[np.float64]:
    """J [B] of the approximation, filter by filter as N x N matrices, in float64."""
    cuts = []
    for p, f in zip(
        probabilities.detach().double().numpy(), features.double().numpy(), strict=True
    ):
        spatial = spatial_weights(*p.shape[1:], radius, sigma_space)
        colours = f.reshape(len(f), -1).T
        cut = float(len(p))
        for of_class in p.reshape(len(p), -1):
            if not of_class.any():
                continue
            mean = np.average(colours, axis=0, weights=of_class)
            weight = np.exp(-((colours - mean) ** 2).sum(1) / sigma_intensity**2)
            cut -= of_class @ (spatial @ (weight * of_class)) / (of_class @ (spatial @ weight))
        cuts.append(cut)
    return np.array(cuts)


def batch(
    seed: int, batch: int, classes: int, height: int, width: int, channels: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random probabilities, and smooth features, so that near pixels are alike; float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, height, width, generator=generator).double()
    coarse = 255 * torch.rand(batch, channels, 3, 3, generator=generator).double()
    features = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return logits.softmax(1), features


def gradient(loss: Loss, probabilities: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    leaf = probabilities.detach().clone().requires_grad_()
    loss(leaf, features).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 13), st.integers(1, 13), st.integers(1, 3)
)
SEEDS = st.integers(0, 2**31)


@given(SEEDS, SHAPES, st.sampled_from([0.5, 1, 1.5, 2, 4.2, 5, 9, 40]))
@settings(max_examples=60, deadline=None)
def test_exact_is_the_dense_matrix(seed, shape, radius):
    probabilities, features = batch(seed, *shape)
    settings = (radius, 13.0, 3.0)
    cuts, slopes = dense(probabilities, features, *settings)
    found = soft_ncut(probabilities, features, *settings)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, cuts, atol=1e-10)
    leaf = probabilities.clone().requires_grad_()
    weight = torch.arange(1.0, len(leaf) + 1).double()  # each image has its own gradient
    (weight * soft_ncut(leaf, features, *settings)).sum().backward()
    expected = slopes * weight.numpy()[:, None, None, None]
    np.testing.assert_allclose(leaf.grad, expected, atol=1e-10)


@given(SEEDS, SHAPES, st.sampled_from([0.5, 1, 1.5, 2, 4.2, 5, 9, 40]))
@settings(max_examples=60, deadline=None)
def test_gaussian_is_its_slow_version(seed, shape, radius):
    probabilities, features = batch(seed, *shape)
    settings = (radius, 40.0, 3.0)
    cuts = slow_gaussian(probabilities, features, *settings)
    np.testing.assert_allclose(gaussian_ncut(probabilities, features, *settings), cuts, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 9, 23, 27, 1), (1, 4, 30, 16, 3), (3, 2, 1, 50, 2)])
def test_single_precision_and_defaults(shape):
    probabilities, features = (t.float() for t in batch(1, *shape))
    cuts, slopes = dense(probabilities, features)
    found = soft_ncut(probabilities, features)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, cuts, atol=1e-5)
    found = gradient(soft_ncut, probabilities, features)
    np.testing.assert_allclose(found, slopes, atol=1e-5 * abs(slopes).max())
    found = gaussian_ncut(probabilities, features)
    np.testing.assert_allclose(found, slow_gaussian(probabilities, features), atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_is_summed_in_single_precision(loss):
    probabilities, features = (t.bfloat16() for t in batch(2, 2, 5, 18, 23, 3))
    expected = dense if loss is soft_ncut else slow_gaussian
    cuts = expected(probabilities, features)
    found = loss(probabilities, features)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, cuts[0] if loss is soft_ncut else cuts, atol=1e-5)
    rounded = gradient(loss, probabilities, features)
    assert rounded.dtype == torch.bfloat16
    exact = gradient(loss, probabilities.double(), features.double())
    torch.testing.assert_close(rounded.double(), exact, atol=1e-2 * exact.abs().max(), rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_changes_nothing(loss):
    probabilities, features = (t.float() for t in batch(3, 2, 4, 20, 20, 3))
    plain = loss(probabilities, features), gradient(loss, probabilities, features)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(probabilities, features), gradient(loss, probabilities, features)
    torch.testing.assert_close(cast, plain, atol=0, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(2, 3, 6, 7, 1), (1, 2, 3, 2, 3), (1, 3, 1, 1, 1)])
def test_gradient_is_that_of_the_value(loss, shape):
    probabilities, features = batch(4, *shape)
    probabilities.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, features, 3, 40.0), (probabilities,))


@given(SEEDS, SHAPES, st.sampled_from(LOSSES))
@settings(max_examples=40, deadline=None)
def test_properties(seed, shape, loss):
    probabilities, features = batch(seed, *shape)
    classes = probabilities.shape[1]
    cuts = loss(probabilities, features)
    assert (cuts > -1e-12).all() and (cuts < classes).all()

    def same(other: torch.Tensor) -> None:
        torch.testing.assert_close(other, cuts, atol=1e-10, rtol=0)

    same(loss(probabilities[:, torch.randperm(classes)], features))
    for change in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)):
        same(loss(change(probabilities), change(features)))
    same(torch.cat([loss(p[None], f[None]) for p, f in zip(probabilities, features, strict=True)]))
    same(loss(probabilities, features + 40))

    k_less_1 = torch.full_like(cuts, classes - 1)
    uniform = torch.full_like(probabilities, 1 / classes)
    torch.testing.assert_close(loss(uniform, features), k_less_1)
    one = torch.zeros_like(probabilities)
    one[:, classes // 2] = 1
    torch.testing.assert_close(loss(one, features), k_less_1)


@given(SEEDS, SHAPES)
@settings(max_examples=30, deadline=None)
def test_a_hard_partition_gives_the_classic_ncut(seed, shape):
    probabilities, features = batch(seed, *shape)
    labels = probabilities.argmax(1)
    hard = torch.nn.functional.one_hot(labels, probabilities.shape[1]).movedim(-1, 1).double()
    for image in range(len(labels)):
        weights = spatial_weights(*labels.shape[1:], 5, 4.0)
        for colour in features[image].flatten(1).numpy():
            weights *= np.exp(-((colour[:, None] - colour) ** 2) / 100)
        flat = labels[image].flatten().numpy()
        cut = 0.0  # sum over the classes of cut(A, rest) / assoc(A, all)
        for k in np.unique(flat):
            cut += weights[flat == k][:, flat != k].sum() / weights[flat == k].sum()
        empty = probabilities.shape[1] - len(np.unique(flat))
        found = soft_ncut(hard[image : image + 1], features[image : image + 1])
        assert found.item() == pytest.approx(cut + empty, abs=1e-10)


@given(SEEDS, SHAPES, st.integers(-4, 4))
@settings(max_examples=30, deadline=None)
def test_a_class_scaled_scales_its_own_term(seed, shape, power):
    probabilities, features = batch(seed, *shape)
    terms = [1 - soft_ncut(p, features) for p in probabilities.split(1, 1)]
    scaled = probabilities.clone()
    scaled[:, 0] *= 2.0**power
    expected = len(terms) - 2.0**power * terms[0] - sum(terms[1:])
    torch.testing.assert_close(soft_ncut(scaled, features), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (4, 2), (12, 12)])
def test_an_image_of_one_colour_has_no_borders(loss, size):
    probabilities, _ = batch(5, 1, 3, *size)
    features = torch.full((1, 3, *size), 255.0).double()
    spatial = spatial_weights(*size, 5, 4.0)
    flat = probabilities[0].flatten(1).numpy()
    cut = 3 - sum(p @ spatial @ p / (spatial @ p).sum() for p in flat)
    assert loss(probabilities, features).item() == pytest.approx(cut, abs=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("least", [0.0, 1e-42, 1e-38, 1e-30])
def test_an_empty_class_is_finite(loss, kind, least):
    probabilities, features = batch(6, 2, 3, 8, 9)
    probabilities[1, 1] = least
    probabilities[1] /= probabilities[1].sum(0)
    probabilities, features = probabilities.to(kind), features.to(kind)
    found = loss(probabilities, features)
    rest = loss(probabilities[1:, [0, 2]], features[1:])
    torch.testing.assert_close(found[1:], 1 + rest)
    slopes = gradient(loss, probabilities, features)
    assert slopes.isfinite().all() and slopes[1, 0].any()
    if least == 0:
        assert not slopes[1, 1].any()


def test_black_and_white_have_a_gaussian_cut():
    # Single precision: e^-162 from the mean grey, which no pixel has.
    probabilities, _ = batch(7, 1, 3, 9, 10)
    features = (torch.arange(90).reshape(1, 1, 9, 10) % 2 * 255).double()
    expected = slow_gaussian(probabilities, features)
    found = gaussian_ncut(probabilities.float(), features.float())
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(3, 60, 90), (40, 6, 7), (1, 5, 3000)])
def test_strips_and_groups_of_images_do_not_show(monkeypatch, size):
    probabilities, features = batch(8, size[0], 3, *size[1:])
    whole = soft_ncut(probabilities, features), gradient(soft_ncut, probabilities, features)
    for strip in (1500, 4001):
        monkeypatch.setattr("training.losses.soft_ncut._STRIP", strip)
        parts = soft_ncut(probabilities, features), gradient(soft_ncut, probabilities, features)
        torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


class Largest(TorchDispatchMode):
    """Notes the largest storage that any operation gave, in bytes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.untyped_storage().nbytes())
        return result


def test_memory_is_that_of_the_probabilities():
    probabilities, features = (t.float() for t in batch(9, 2, 4, 32, 32, 3))
    probabilities.requires_grad_()
    saved = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        soft_ncut(probabilities, features).sum().backward()
    own = probabilities.untyped_storage().nbytes()
    # One more channel, and as many pixels as the window reaches at an image's right and bottom.
    assert own <= largest.size <= own * 5 / 4 * (36 / 32) ** 2
    assert saved == [own]


def test_nothing_is_saved_without_gradient():
    probabilities, features = batch(10, 2, 3, 8, 8)
    assert soft_ncut(probabilities, features).grad_fn is None
    leaf = probabilities.clone().requires_grad_()
    with torch.no_grad():
        found = soft_ncut(leaf, features)
    assert found.grad_fn is None and not found.requires_grad


@pytest.mark.parametrize("loss", LOSSES)
def test_backward_twice(loss):
    probabilities, features = batch(11, 2, 3, 8, 8)
    probabilities.requires_grad_()
    total = loss(probabilities, features).sum()
    (first,) = torch.autograd.grad(total, probabilities, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(total, probabilities)
    torch.testing.assert_close(second, kept, atol=0, rtol=0)


def test_strided_and_separate_memory():
    probabilities, features = batch(12, 2, 3, 9, 8)
    last = probabilities.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(soft_ncut(last, features), soft_ncut(probabilities, features))
    found = gradient(soft_ncut, last, features)
    torch.testing.assert_close(found, gradient(soft_ncut, probabilities, features))
    before = probabilities.clone(), features.clone()
    gradient(soft_ncut, probabilities, features)
    torch.testing.assert_close((probabilities, features), before, atol=0, rtol=0)


@pytest.mark.parametrize("other", [benchmark.unfold_ncut, benchmark.dense_ncut])
def test_the_benchmark_compares_like_with_like(other):
    case = benchmark.Case("exact", "cpu", batch=2, height=14, width=11, clusters=4)
    probabilities, features = benchmark.inputs(case)
    torch.testing.assert_close(
        soft_ncut(probabilities, features), other(probabilities, features), atol=1e-5, rtol=0
    )
    found, expected = (gradient(loss, probabilities, features) for loss in (soft_ncut, other))
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max(), rtol=0)


def test_a_benchmark_case_has_a_time_and_a_peak(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUND_S", 0.0)
    case = benchmark.Case("unfold", "cpu", batch=1, height=64, width=64, clusters=9)
    milliseconds, peak_mb = benchmark.measure(case)
    windows_mb = 64 * 64 * 81 * 9 * 4 / 1e6
    assert milliseconds > 0 and windows_mb < peak_mb < 20 * windows_mb


def test_the_goals_are_judged():
    def rows(exact: tuple[float, float], gaussian: float) -> list[dict]:
        values = {"exact": exact, "gaussian": (gaussian, 1.0), "unfold": (100.0, 100.0)}
        common = {"device": "cpu", "height": benchmark.SIZE}
        return [
            {"loss": loss, "forward_backward_ms": ms, "peak_mb": mb, **common}
            for loss, (ms, mb) in values.items()
        ]

    def held(*arguments: object) -> list[bool]:
        return [line.endswith(": held") for line in benchmark.verdicts(rows(*arguments))]

    assert held((20.0, 20.0), 10.0) == [True, True, True]
    assert held((20.1, 20.1), 10.0) == [False, False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("loss", LOSSES)
def test_cuda(loss):
    probabilities, features = (t.float() for t in batch(13, 3, 9, 33, 47, 3))
    found = loss(probabilities.cuda(), features.cuda()).cpu()
    torch.testing.assert_close(found, loss(probabilities, features), atol=1e-5, rtol=0)
    found = gradient(loss, probabilities.cuda(), features.cuda()).cpu()
    expected = gradient(loss, probabilities, features)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max(), rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("probabilities", "features", "message"),
    [
        (torch.ones(3, 4, 4), torch.ones(1, 1, 4, 4), r"probabilities must be \[B, channels"),
        (torch.ones(1, 3, 4, 4), torch.ones(4, 4), r"features must be \[B, channels, H, W\]"),
        (torch.ones(1, 0, 4, 4), torch.ones(1, 1, 4, 4), r"not \[1, 0, 4, 4\]"),
        (torch.ones(1, 3, 4, 4), torch.ones(1, 0, 4, 4), r"features .* not \[1, 0, 4, 4\]"),
        (torch.ones(0, 3, 4, 4), torch.ones(0, 1, 4, 4), "probabilities must be"),
        (torch.ones(2, 3, 4, 4), torch.ones(1, 1, 4, 4), "of 2 images, features of 1"),
        (torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 5), r"\[4, 4\].*\[4, 5\]"),
        (torch.ones(1, 3, 4, 4).int(), torch.ones(1, 1, 4, 4), "probabilities must be float"),
        (torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 4).byte(), "features must be float"),
        (torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 4, requires_grad=True), "detach"),
    ],
)
def test_what_does_not_fit_is_named(loss, probabilities, features, message):
    with pytest.raises(ValueError, match=message):
        loss(probabilities, features)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["radius", "sigma_intensity", "sigma_space"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_settings_out_of_range_are_named(loss, name, value):
    probabilities, features = batch(14, 1, 2, 3, 3)
    with pytest.raises(ValueError, match=f"{name} must be above 0"):
        loss(probabilities, features, **{name: value})
