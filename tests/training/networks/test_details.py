# SPDX-License-Identifier: Apache-2.0
"""The branch of convolutions beside a Segmenter's ViT."""

import numpy as np
import onnxruntime
import pytest
import torch

from training.export.checkpoint import export_graph
from training.networks.mask_transformer import MaskTransformer
from training.systems.segmenter import SegmenterSystem

pytestmark = pytest.mark.slow


def system(patch=16, **options):
    torch.manual_seed(0)
    size = (4 * patch, 6 * patch)
    arguments = {"patch": patch, "size": size, "decoder_dim": 64, "subpatch": 4, "mask_dim": 8}
    return SegmenterSystem("test_vit", **{**arguments, "details": 12, **options}).eval()


def with_weights(made):
    """Beyond the zeros that the branch begins with, and BatchNorm's statistics."""
    for module in made.network.details.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.nn.init.normal_(made.network.details.rest[-1].weight, std=0.5)
    return made


def test_network_begins_as_one_without_the_branch():
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    made = system()
    plain = system(details=0)
    plain.load_state_dict(
        {k: v for k, v in made.state_dict().items() if "details" not in k}, strict=True
    )
    with torch.inference_mode():
        assert torch.equal(made.logits(images), plain.logits(images))
        assert not torch.equal(with_weights(made).logits(images), plain.logits(images))


def test_details_go_to_the_cells_where_they_are():
    """Without tokens' own embeddings each cell's score is that of its detail alone."""
    torch.manual_seed(0)
    decoder = MaskTransformer(16, 5, dim=64, depth=1, dropout=0, subpatch=2, mask_dim=4).eval()
    torch.nn.init.zeros_(decoder.project_patches.weight)
    details = torch.randn(1, 4, 6, 8)
    with torch.inference_mode():
        masks = decoder(torch.randn(1, 12, 16), (3, 4), details)
        moved = decoder(torch.randn(1, 12, 16), (3, 4), details.roll((2, 2), (2, 3)))
    assert masks.shape == (1, 5, 6, 8)
    # Class tokens see patch tokens, which differ: compare cells with one another only.
    order = masks.argmax(1)
    unit = torch.nn.functional.normalize(details, dim=1)
    alike = torch.einsum("bcij,bckl->bijkl", unit, unit)[0]
    for y, x in ((0, 0), (3, 5), (5, 7)):
        near = (alike[y, x] > 0.999).nonzero().tolist()
        assert [y, x] in near
        assert all(order[0, i, j] == order[0, y, x] for i, j in near)
    assert moved.shape == masks.shape
    single = torch.zeros(1, 4, 6, 8)
    single[0, :, 3, 5] = 1
    with torch.inference_mode():
        only = decoder(torch.zeros(1, 12, 16), (3, 4), single)
    apart = (only - only[:, :, :1, :1]).abs().sum(1)[0] > 1e-4
    assert apart.nonzero().tolist() == [[3, 5]]


@pytest.mark.parametrize(("patch", "sizes"), [(16, [(64, 96), (48, 128)]), (14, [(56, 70)])])
def test_exported_graph_gives_the_networks_labels(patch, sizes, street_frames):
    made = with_weights(system(patch))
    session = onnxruntime.InferenceSession(
        export_graph(made.graph(), made.task).SerializeToString()
    )
    for height, width in sizes:
        frame = np.ascontiguousarray(street_frames[0][:height, :width])
        with torch.inference_mode():
            expected = made.logits(torch.from_numpy(frame).permute(2, 0, 1)[None]).argmax(1)
        labels, _ = session.run(None, {"image": frame[None]})
        assert len(np.unique(labels)) > 1
        assert (labels == expected.numpy()).mean() > 0.999


def test_a_linear_head_takes_no_details():
    with pytest.raises(ValueError, match="set head to mask"):
        system(head="linear")
