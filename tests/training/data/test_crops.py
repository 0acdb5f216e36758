# SPDX-License-Identifier: Apache-2.0
"""Views of frames: as large and as varied as specified, the same however a run is split."""

import warnings
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from training.data.crops import Crops, view
from training.data.files import DataError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, street_frames):
    """Twelve images of 60x80."""
    root = tmp_path_factory.mktemp("frames")
    for i in range(12):
        part = street_frames[i % 6][20 * (i // 6) :][:60, 30 * i :][:, :80]
        cv2.imwrite(str(root / f"{i:02}.png"), part[..., ::-1])
    return root


def module(source, world=1, rank=0, **options):
    options = {
        "batch_size": 4,
        "global_size": 48,
        "local_size": 32,
        "local_crops": 3,
        "workers": 0,
        **options,
    }
    data = Crops(str(source), **options)
    data.trainer = SimpleNamespace(world_size=world, global_rank=rank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.setup("fit")
    return data


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def test_batches(folder):
    batches = epoch(module(folder), 0)
    assert len(batches) == 3
    large, small, _ = batches[0]
    assert large.dtype == small.dtype == torch.uint8
    assert large.shape == (4, 2, 3, 48, 48) and small.shape == (4, 3, 3, 32, 32)
    everyone = [name for _, _, names in batches for name in names]
    assert len(set(everyone)) == 12 and everyone != sorted(everyone)
    # All views of a frame differ.
    assert not torch.equal(large[0, 0], large[0, 1])
    assert not torch.equal(small[0, 0], small[0, 1])


@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.4)])
def test_parts_have_the_shares_of_the_area(scale):
    rows, columns = np.mgrid[:200, :240]
    ramps = torch.from_numpy(np.stack([rows, columns, rows * 0]).astype(np.uint8))
    cut = view(64, scale, 0.0).transforms[0]
    shares = []
    for seed in range(200):
        torch.manual_seed(seed)
        part = cut(ramps).numpy().astype(int)
        # From middle to middle of the outer pixels is one pixel in 64 less than the part.
        height, width = (np.ptp(part[axis]) * 64 / 63 for axis in (0, 1))
        shares.append(height * width / (200 * 240))
        assert 0.7 < width / height < 1.4
    assert scale[0] * 0.9 < min(shares) < scale[0] + 0.1
    assert scale[1] - 0.15 < max(shares) < scale[1] * 1.1


def test_colours_change_as_often_as_published():
    """Each kind of change is seen apart, on an image where only it does something."""
    flat = torch.tensor([200, 120, 40], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    stripes = 255 * (torch.arange(32) // 4 % 2).to(torch.uint8).expand(3, 32, 32)
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    ramp = (4 * torch.arange(32, dtype=torch.uint8)).expand(3, 32, 32)

    def share(image, seen, **options):
        changes = view(32, (1.0, 1.0), **{"blur": 0.0, **options})
        count = 0
        for seed in range(150):
            torch.manual_seed(seed)
            count += bool(seen(changes(image)))
        return pytest.approx(count / 150, abs=0.1)

    assert share(flat, lambda x: (x[0] == x[1]).all() and (x[1] == x[2]).all()) == 0.2
    assert share(flat, lambda x: not torch.equal(x, flat)) == 1 - 0.2 * 0.8  # jittered or grey
    assert share(ramp, lambda x: x[0, 0, 0] > x[0, 0, -1]) == 0.5
    for blur in (0.1, 0.5, 1.0):
        # Between two levels there are others only after a blur; the weakest ones leave none.
        assert share(stripes, lambda x: len(x[0, 16].unique()) > 2, blur=blur) == 0.9 * blur
    assert share(white, lambda x: x.max() < 128, solarise=0.2) == 0.2
    assert share(white, lambda x: x.max() < 128) == 0


def test_the_published_pair_of_global_views(folder):
    kinds = [[type(step).__name__ for step in v.transforms] for v in module(folder).views]
    assert "RandomSolarize" not in kinds[0] and "RandomSolarize" in kinds[1]
    blurs = [v.transforms[4].p for v in (*module(folder).views, module(folder).local)]
    assert blurs == [1.0, 0.1, 0.5]


def test_views_depend_on_seed_epoch_and_frame_only(folder):
    def views(seed=0, number=0, index=3):
        frames = module(folder, seed=seed).train_dataloader().dataset
        return frames[(number, index)][:2]

    first = views()
    torch.rand(7)
    state = torch.get_rng_state()
    assert all(map(torch.equal, first, views()))
    assert torch.equal(torch.get_rng_state(), state)
    for changed in ({"seed": 1}, {"number": 1}, {"index": 4}):
        assert not any(map(torch.equal, first, views(**changed)))


def test_processes_share_the_batches_of_one(folder):
    whole = epoch(module(folder), 5)
    shares = [epoch(module(folder, 2, rank), 5) for rank in range(2)]
    for together, *parts in zip(whole, *shares, strict=True):
        assert sorted(together[2]) == sorted(name for part in parts for name in part[2])
        ours = {n: (x, y) for x, y, n in zip(*together, strict=True)}
        for part in parts:
            for large, small, name in zip(*part, strict=True):
                assert torch.equal(ours[name][0], large) and torch.equal(ours[name][1], small)


def test_the_frames_to_look_at_are_whole(folder):
    ((images, names),) = module(folder).val_dataloader()
    assert images.shape == (8, 3, 48, 48) and len(names) == 8
    assert "12 frames of" in module(folder).summary


def test_frames_that_are_too_small(folder, tmp_path, street_frames):
    for i in range(7):
        cv2.imwrite(str(tmp_path / f"{i}.png"), street_frames[0][:30, :80])
    data = Crops([str(folder), str(tmp_path)], 4, global_size=64, local_size=32)
    with pytest.raises(DataError, match=r"7 frames are smaller .* 32 pixels: .*0\.png \(80x30\)"):
        data.setup("fit")
    data = Crops(str(folder), 4, global_size=64, local_size=32)
    with pytest.warns(UserWarning, match="12 frames are smaller than 64x64 and are enlarged"):
        data.setup("fit")


def test_what_cannot_be_trained_on(folder):
    with pytest.raises(DataError, match="12 training frames are fewer than one batch of 13"):
        module(folder, batch_size=13).train_dataloader()
    for scale in ((0.0, 1.0), (0.5, 1.1), (0.5, 0.4)):
        with pytest.raises(DataError, match=r"global_scale .* shares of a frame's area"):
            Crops("x", global_scale=scale)
        with pytest.raises(DataError, match="local_scale"):
            Crops("x", local_scale=scale)
    with pytest.raises(DataError, match="local_crops is 0"):
        Crops("x", local_crops=0)
    with pytest.raises(DataError, match="local_size 64 is above global_size 48"):
        Crops("x", local_size=64, global_size=48)


def test_every_argument_can_be_set_on_the_command_line():
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    given = ["--data=training.data.crops.Crops", '--data.source=["a.mcap", "b"]']
    parsed = parser.parse_args([*given, "--data.local_scale=[0.1,0.3]", "--data.topic=/x"])
    options = parsed.data.init_args
    assert options.source == ["a.mcap", "b"] and options.topic == "/x"
    assert options.local_scale == (0.1, 0.3) and options.global_size == 224
