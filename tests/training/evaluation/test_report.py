# SPDX-License-Identifier: Apache-2.0
import cv2
import pytest
from torch.utils.tensorboard import SummaryWriter

from ctxseg_ros.model.model_file import read_model_info
from training.data.camvid import CLASSES, VOID, camvid_pairs
from training.data.pairs import DataError
from training.evaluation.report import draw_curves, draw_worst, read_curves

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    """A run of 60 steps that was resumed at step 40 from a checkpoint."""
    for part, steps, loss in (("version_0", range(60), 2.0), ("version_1", range(40, 100), 1.0)):
        with SummaryWriter(tmp_path / part) as writer:
            for step in steps:
                writer.add_scalar("train/loss", loss, step)
                if step % 10 == 9:
                    writer.add_scalar("val/miou", step / 100, step)
                    for name, _ in CLASSES:
                        writer.add_scalar(f"val/iou_{name}", step / 100, step)
    return tmp_path


def test_a_resumed_part_replaces_what_it_did_again(run):
    loss = read_curves(run)["train/loss"]
    assert sorted(loss) == list(range(100))
    assert {loss[s] for s in range(40)} == {2.0}
    assert {loss[s] for s in range(40, 100)} == {1.0}


def test_run_without_events_is_refused(tmp_path):
    with pytest.raises(DataError, match="no TensorBoard events"):
        read_curves(tmp_path)


def test_pictures(run, small_camvid, model_factory, tmp_path):
    draw_curves(read_curves(run), [name for name, _ in CLASSES], tmp_path / "curve.png")
    info = read_model_info(model_factory(classes=11, size=(32, 48)))
    draw_worst(info, camvid_pairs(small_camvid, "val"), VOID, tmp_path / "worst.png")
    for name in ("curve.png", "worst.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture.shape[1] >= 1000
        assert picture.std() > 10
