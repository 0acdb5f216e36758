# SPDX-License-Identifier: Apache-2.0
"""The soft N-cut over one graph of a batch, beside slow oracles."""

import pytest
import torch

from training.losses.batch_ncut import batch_ncut
from training.losses.soft_ncut import soft_ncut

pytestmark = pytest.mark.slow


def case(seed=0, size=(3, 4, 5, 6), channels=2):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(size, generator=generator, dtype=torch.float64).softmax(1)
    features = torch.randn(size[0], channels, *size[2:], generator=generator, dtype=torch.float64)
    return p, features


def slow(p, features, sigma):
    """From the formula, with the whole W, differentiable by autograd."""
    p, f = p.movedim(1, -1).flatten(0, 2), features.movedim(1, -1).flatten(0, 2)
    w = torch.exp(-(f[:, None] - f[None]).square().sum(-1) / sigma**2)
    cuts = [(p[:, k] @ w @ p[:, k]) / (p[:, k] @ w.sum(1)) for k in range(p.shape[1])]
    return p.shape[1] - sum(cuts)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_value_and_gradient_are_those_of_the_formula(sigma, monkeypatch):
    monkeypatch.setattr("training.losses.batch_ncut._ROWS", 7)  # several blocks, the last shorter
    p, features = case()
    p.requires_grad_()
    found, expected = batch_ncut(p, features, sigma), slow(p, features, sigma)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found, p)
    (reference,) = torch.autograd.grad(expected, p)
    torch.testing.assert_close(slope, reference)


def test_one_image_is_the_published_loss_without_a_window():
    p, features = case(size=(1, 3, 5, 6), channels=1)
    published = soft_ncut(p, features, radius=100, sigma_intensity=0.7, sigma_space=1e6)
    torch.testing.assert_close(batch_ncut(p, features, 0.7), published[0], atol=1e-6, rtol=1e-6)


def test_images_may_leave_clusters_empty_and_must_agree_on_them():
    """Two images of one thing each: the loss is least where each has a cluster of its own."""
    features = torch.zeros(4, 1, 2, 3)
    features[2:] = 1
    apart = torch.zeros(4, 2, 2, 3)
    apart[:2, 0] = apart[2:, 1] = 1
    swapped = apart.clone()
    swapped[3] = apart[0]
    halves = torch.full((4, 2, 2, 3), 0.5)
    cuts = [batch_ncut(p, features, 0.2).item() for p in (apart, swapped, halves)]
    assert cuts[0] == pytest.approx(0, abs=1e-6)
    assert cuts[0] + 0.3 < min(cuts[1:])
    # The published loss cannot tell the first two, and charges both for an empty cluster an image.
    per_image = [soft_ncut(p, features, sigma_intensity=0.2).tolist() for p in (apart, swapped)]
    assert per_image[0] == per_image[1] == [1.0] * 4


def test_an_empty_cluster_adds_one_and_has_no_gradient():
    p = torch.zeros(1, 2, 2, 2, requires_grad=True)
    with torch.no_grad():
        p[:, 0] = 1
    cut = batch_ncut(p, torch.zeros(1, 1, 2, 2), 1.0)
    cut.backward()
    assert cut == 1 and (p.grad[:, 1] == 0).all() and p.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    p, features = case(size=(2, 3, 4, 4))
    found = batch_ncut(p.bfloat16(), features.bfloat16(), 1.0)
    expected = slow(p.bfloat16().double(), features.bfloat16().double(), 1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, f: (p, f[..., :-1], 1.0), "not of the same pixels"),
        (lambda p, f: (p, f, 0.0), "sigma must be above 0"),
        (lambda p, f: (p[0], f, 1.0), r"must be \[B, channels, H, W\]"),
        (lambda p, f: (p, f.requires_grad_(), 1.0), "pass features.detach"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        batch_ncut(*change(*case()))
