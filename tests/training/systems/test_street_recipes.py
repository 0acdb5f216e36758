# SPDX-License-Identifier: Apache-2.0
"""The recipes on the mixture of streets.yaml."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from training.__main__ import main
from training.data.mixture import Mixture, Source
from training.systems.segmenter import SegmenterSystem

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parents[3] / "training" / "configs"
SIZES = {
    "segmenter_tiny_streets": [64, 96],
    "segmenter_small_streets": [56, 84],
    "unet_streets": [64, 96],
}
#: Bytes that the file of segmenter_small may have.
LIMIT = 48e6


@pytest.mark.parametrize("recipe", SIZES)
def test_recipe_trains(recipe, small_camvid, capsys):
    """Two batches in mixed precision, on small data and without the weights' file."""
    camvid = {"labels": "camvid", "root": str(small_camvid)}
    options = {
        "model.init_args.size": SIZES[recipe],
        "data.init_args.size": SIZES[recipe],
        "data.init_args.sources": json.dumps([camvid]),
        "data.init_args.val": json.dumps([{**camvid, "splits": ["val"]}]),
        "data.init_args.unlabelled": json.dumps([str(small_camvid / "train" / "images")]),
        "data.init_args.workers": 0,
        "data.init_args.frames": 4,
        "data.init_args.batch_size": 2,
        "data.init_args.unlabelled_batch": 2,
        "trainer.accelerator": "cpu",
        "trainer.fast_dev_run": 2,
    }
    if recipe == "unet_streets":
        options["model.init_args.width"] = 0.0625
    else:
        options["model.init_args.weights"] = "null"
    configs = [f"--config={CONFIGS / name}.yaml" for name in ("streets", recipe)]
    assert main(["fit", *configs, *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert "val/miou" in capsys.readouterr().out


def test_segmenter_small_fits_its_limit():
    recipe = yaml.safe_load((CONFIGS / "segmenter_small_streets.yaml").read_text())
    arguments = {**recipe["model"]["init_args"], "weights": None, "ema": 0.0}
    with torch.device("meta"):
        network = SegmenterSystem(**arguments).network
    # Two bytes a parameter, and 2 % for the graph and what stays in single precision.
    assert 1.02 * 2 * sum(p.numel() for p in network.parameters()) < LIMIT


def test_places_that_validate_do_not_train(data_dir):
    """The split of LabelMeFacade by places, on its real file names."""
    data = yaml.safe_load((CONFIGS / "streets.yaml").read_text())["data"]["init_args"]
    train = next(each for each in data["sources"] if "labelmefacade/classes" in each["labels"])
    aside = next(each for each in data["val"] if each.get("name") == "places")
    assert train["without"] == aside["only"]
    root = str(data_dir / "labelmefacade")
    sources = [
        Source(**{**each, "labels": f"{root}/classes.yaml", "root": root, "fill": ""})
        for each in (train, aside)
    ]
    mixture = Mixture(sources[:1], sources[1:], frames=8)
    mixture.setup("fit")
    names = [{pair.image.name for pair in part[0].pairs} for part in (mixture.train, mixture.val)]
    assert len(names[0]) > 500 and len(names[1]) > 90 and not names[0] & names[1]
    assert not any("barcelona" in name for name in names[0])
