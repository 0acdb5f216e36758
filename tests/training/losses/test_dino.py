# SPDX-License-Identifier: Apache-2.0
"""Loss and head of self-distillation against loops in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.losses.dino import dino_loss, entropy, sharpened
from training.networks.dino_head import DinoHead


def softmax(x: np.ndarray) -> np.ndarray:
    powers = [math.exp(v - max(x)) for v in x]
    return np.array([p / sum(powers) for p in powers])


def slow_loss(student, said, centre, cold, warm) -> float:
    """A mean over samples and over pairs of different views, one number at a time."""
    terms = []
    for t in range(len(said)):
        for s in range(len(student)):
            if s == t:
                continue
            for sample in range(student.shape[1]):
                p = softmax((said[t, sample] - centre) / cold)
                q = softmax(student[s, sample] / warm)
                terms.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
    return sum(terms) / len(terms)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 9999),
    st.integers(1, 2),
    st.integers(0, 4),
    st.integers(1, 4),
    st.floats(0.03, 0.1),
)
def test_loss_of_all_pairs_of_views(seed, teachers, more, batch, cold):
    rng = np.random.default_rng(seed)
    views = teachers + max(more, 2 - teachers)
    student = rng.uniform(-1, 1, (views, batch, 7))
    said, centre = rng.uniform(-1, 1, (teachers, batch, 7)), rng.uniform(-0.3, 0.3, 7)
    expected = slow_loss(student, said, centre, cold, 0.1)
    target = sharpened(torch.tensor(said), torch.tensor(centre, dtype=torch.float32), cold)
    found = dino_loss(torch.tensor(student), target, 0.1)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    student = (1.9 * torch.rand(4, 3, 9, generator=torch.Generator().manual_seed(0)) - 1).to(half)
    said, centre = student[:2].flip(0), torch.full((9,), 0.01)
    target = sharpened(said, centre, 0.04)
    assert target.dtype == torch.float32
    expected = slow_loss(
        student.double().numpy(), said.double().numpy(), centre.double().numpy(), 0.04, 0.1
    )
    with torch.autocast("cpu", half):
        found = dino_loss(student, target, 0.1)
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_entropy():
    for size in (2, 7):
        assert float(entropy(torch.full((size,), 1 / size))) == pytest.approx(math.log(size))
    assert entropy(torch.eye(3)).tolist() == [0, 0, 0]


def test_head_is_that_of_the_paper():
    """Its last layer is a weight norm of 1, whatever its weights' lengths."""
    head = DinoHead(5, outputs=11, hidden=8, bottleneck=4)
    with torch.no_grad():
        head.last.weight *= torch.linspace(0.1, 9, 11)[:, None]
    layers = [m for m in head.mlp if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(5, 8), (8, 8), (8, 4)]
    last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 11, bias=False))
    with torch.no_grad():
        last.parametrizations.weight.original0.fill_(1)
        last.parametrizations.weight.original1.copy_(head.last.weight)
    x = torch.randn(6, 5)
    y = layers[2](nn.functional.gelu(layers[1](nn.functional.gelu(layers[0](x)))))
    torch.testing.assert_close(head(x), last(y / y.norm(dim=-1, keepdim=True)))
    assert sum(p.numel() for p in head.parameters()) == 5 * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4 + 11 * 4


def test_head_gives_float32_cosines_under_amp():
    head = DinoHead(5, outputs=50, hidden=8, bottleneck=4)
    x = torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(x)
        half = head.mlp(x)
    assert half.dtype == torch.bfloat16 and found.dtype == torch.float32
    exact = (
        nn.functional.normalize(half.double(), dim=-1)
        @ nn.functional.normalize(head.last.weight.double(), dim=-1).T
    )
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=1e-5)


def test_a_feature_of_zeros_has_a_finite_gradient():
    head = DinoHead(5, outputs=11, hidden=8, bottleneck=4)
    nn.init.zeros_(head.mlp[-1].weight)
    head(torch.zeros(2, 5)).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
