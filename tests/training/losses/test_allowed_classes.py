# SPDX-License-Identifier: Apache-2.0
"""The loss of labels that allow several classes, or are not certain, beside a slow oracle."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from training.losses.allowed_classes import allowed_classes_loss

pytestmark = pytest.mark.slow

CLASSES = 4
SETS = [{0}, {1}, {2}, {3}, {0, 2}, {1, 2, 3}]
ALLOWED = torch.tensor([[k in each for k in range(CLASSES)] for each in SETS])


def slow(logits, labels, confidence):
    """Pixel by pixel, from the formula."""
    total = 0.0
    batch, _, height, width = logits.shape
    for b, y, x in itertools.product(range(batch), range(height), range(width)):
        label = int(labels[b, y, x])
        if label == 255:
            continue
        powers = [math.exp(value) for value in logits[b, :, y, x].tolist()]
        p = sum(powers[k] for k in SETS[label]) / sum(powers)
        c = int(confidence[b, y, x]) / 255
        total -= c * math.log(p) + (1 - c) * math.log(1 - p)
    return total


def case(seed, size=(2, 3, 4)):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size[0], CLASSES, *size[1:], generator=generator, dtype=torch.float64)
    labels = torch.randint(0, len(SETS) + 1, size, generator=generator)
    labels[labels == len(SETS)] = 255
    confidence = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    confidence[torch.rand(size, generator=generator) < 0.4] = 255
    return logits, labels, confidence


@given(st.integers(0, 2**32))
def test_loss_is_that_of_the_formula(seed):
    logits, labels, confidence = case(seed)
    found = allowed_classes_loss(logits, labels, confidence, ALLOWED)
    assert found.item() == pytest.approx(slow(logits, labels, confidence), rel=1e-9, abs=1e-9)


def test_certain_single_classes_give_the_cross_entropy():
    logits, labels, _ = case(1)
    labels = labels.where(labels < CLASSES, 255)
    certain = torch.full(labels.shape, 255, dtype=torch.uint8)
    expected = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    found = allowed_classes_loss(logits, labels, certain, torch.eye(CLASSES, dtype=torch.bool))
    torch.testing.assert_close(found, expected)


def test_gradient_is_that_of_finite_differences():
    logits, labels, confidence = case(2, (1, 2, 3))
    assert torch.autograd.gradcheck(
        lambda x: allowed_classes_loss(x, labels, confidence, ALLOWED), logits.requires_grad_()
    )


def test_several_allowed_classes_may_share_their_probability_in_any_way():
    """The gradient pushes up both or neither; which of the two a pixel is stays open."""
    logits = torch.tensor([2.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1).requires_grad_()
    label, certain = torch.full((1, 1, 1), 4), torch.full((1, 1, 1), 255, dtype=torch.uint8)
    allowed_classes_loss(logits, label, certain, ALLOWED).backward()
    slope = logits.grad.flatten()
    assert slope[0] < 0 and slope[2] < 0 and slope[1] > 0 and slope[3] > 0
    share = slope[0] / slope[2]
    torch.testing.assert_close(share, torch.tensor(1.0).exp())


@pytest.mark.parametrize("sure", [51, 128, 230])
def test_an_uncertain_label_is_believed_as_much_as_it_is_sure(sure):
    """The loss is least where the class has the probability of the label."""
    p = sure / 255
    rest = math.log((1 - p) / 3)
    logits = torch.tensor([math.log(p), rest, rest, rest], dtype=torch.float64)
    logits = logits.view(1, 4, 1, 1).requires_grad_()
    label, confidence = torch.zeros(1, 1, 1, dtype=torch.long), torch.full((1, 1, 1), sure)
    allowed_classes_loss(logits, label, confidence.to(torch.uint8), ALLOWED).backward()
    assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(kind):
    logits = torch.tensor([200.0, -200.0, 0.0, 50.0]).to(kind).view(1, 4, 1, 1)
    logits = logits.expand(1, 4, 1, len(SETS)).clone().requires_grad_()
    labels = torch.arange(len(SETS)).view(1, 1, -1)
    for sure in (0, 1, 254, 255):
        loss = allowed_classes_loss(
            logits, labels, torch.full_like(labels, sure, dtype=torch.uint8), ALLOWED
        )
        (slope,) = torch.autograd.grad(loss, logits)
        assert loss.dtype == torch.float32 and loss.isfinite() and slope.isfinite().all()


def test_nothing_labelled_costs_nothing():
    logits, labels, confidence = case(3)
    logits.requires_grad_()
    loss = allowed_classes_loss(logits, torch.full_like(labels, 255), confidence, ALLOWED)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
