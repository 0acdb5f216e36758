# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.losses.lovasz import lovasz_softmax


def jaccard_loss(truth: np.ndarray, wrong: np.ndarray) -> float:
    """1 - IoU of a class when just the pixels in ``wrong`` are misclassified (sets, float64)."""
    union = (truth | wrong).sum()
    return 1 - (truth & ~wrong).sum() / union if union else 0.0


def slow_lovasz(probabilities: np.ndarray, labels: np.ndarray, ignore: int) -> float:
    """The Lovász extension by its integral: the set loss of {errors > t}, over t from 0 to 1."""
    images = []
    for p, y in zip(probabilities.astype(np.float64), labels, strict=True):
        p, y = p[:, y != ignore], y[y != ignore]
        classes = []
        for c in np.unique(y):
            truth = y == c
            errors = np.abs(truth - p[c])
            levels = np.unique(np.concatenate([[0.0], errors]))
            classes.append(
                sum(
                    (high - low) * jaccard_loss(truth, errors > low)
                    for low, high in pairwise(levels)
                )
            )
        images.append(np.mean(classes) if classes else 0.0)
    return float(np.mean(images))


def batch(seed: int, classes: int, size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size[0], classes, *size[1:], generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, size, generator=generator)
    labels[torch.rand(size, generator=generator) < 0.2] = 255
    return logits.softmax(1), labels


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


@given(st.integers(0, 2**31), st.integers(2, 6), SIZES)
@settings(max_examples=60, deadline=None)
def test_lovasz_is_the_integral_of_the_set_loss(seed, classes, size):
    probabilities, labels = batch(seed, classes, size)
    found = lovasz_softmax(probabilities, labels).item()
    assert found == pytest.approx(slow_lovasz(probabilities.numpy(), labels.numpy(), 255), abs=1e-9)
    assert -1e-12 <= found <= 1 + 1e-12


def test_lovasz_at_hard_predictions_is_the_jaccard_loss():
    labels = torch.tensor([[[0, 0, 1, 1], [2, 2, 2, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 1], [2, 2, 0, 0]]])
    hard = torch.nn.functional.one_hot(predicted, 3).permute(0, 3, 1, 2).double()
    iou = np.mean([1 / 3, 2 / 3, 2 / 3])
    assert lovasz_softmax(hard, labels).item() == pytest.approx(1 - iou)
    right = torch.nn.functional.one_hot(labels.clamp(max=2), 3).permute(0, 3, 1, 2).double()
    assert lovasz_softmax(right, labels).item() == pytest.approx(0)


def test_lovasz_gradient():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 4, (2, 3, 5), generator=generator)
    labels[0, 0, 0] = 255
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x.softmax(1), labels), logits)


def test_lovasz_without_a_labelled_pixel_is_zero_and_differentiable():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = lovasz_softmax(logits.softmax(1), torch.full((2, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
