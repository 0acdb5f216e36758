# SPDX-License-Identifier: Apache-2.0
"""``python -m training data``: what is there, or every broken file."""

import shutil

import cv2
import numpy as np
import pytest

from training.data import __main__ as command
from training.data.__main__ import main


def test_a_whole_set_is_summed_up(small_camvid, capsys):
    assert main(["camvid", str(small_camvid)]) == 0
    rows = {
        cells[0]: cells[1:]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│ ").split("│")]) == 3
    }
    assert rows["frames"] == ["8", "3"] and rows["sizes"] == ["96x64", "96x64"]
    # The fixture makes the four rows at the top void.
    assert rows["unlabelled pixels"] == ["4.2 %", "4.2 %"]
    shares = [row[0] for name, row in rows.items() if name in ("sky", "road", "car", "fence")]
    labels = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in (small_camvid / "train" / "labels").iterdir()
    ]
    counts = np.bincount(np.concatenate(labels).ravel(), minlength=12)[:11]
    expected = 100 * counts[[0, 3, 7, 8]] / counts.sum()
    assert shares == [f"{share:.2f} %" if share else "-" for share in expected]


def test_every_broken_file_of_both_splits_is_named(small_camvid, tmp_path, capsys):
    root = shutil.copytree(small_camvid, tmp_path / "camvid")
    for i in range(8):
        (root / "train" / "images" / f"{i:03}.png").write_bytes(b"x")
    (root / "val" / "labels" / "001.png").write_bytes(b"x")
    assert main(["camvid", str(root)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "9 broken"
    named = [f"{root}/train/images/{i:03}.png" for i in range(8)] + [f"{root}/val/labels/001.png"]
    assert [line.partition(":")[0] for line in lines[:-1]] == named


def test_more_files_are_named_than_a_message_holds(tmp_path, capsys):
    for i in range(60):
        (tmp_path / f"{i:02}.png").write_bytes(b"x")
    assert main(["frames", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 61 and lines[-1] == "60 broken" and "59.png" in lines[-2]


def test_frames_are_summed_up(tmp_path, street_frames, capsys):
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), street_frames[i][:, : 100 if i == 4 else 640])
    cv2.imwrite(str(tmp_path / "flat.png"), np.zeros((30, 40), np.uint8))
    assert main(["frames", str(tmp_path), "--stride", "1"]) == 0
    out, err = capsys.readouterr()
    assert "640x272 (4)" in out and "100x272 (1)" in out and "40x30 (1)" in out
    assert err == f"{tmp_path / 'flat.png'}: one colour, it teaches nothing\n"
    assert main(["frames", str(tmp_path), "--stride", "6"]) == 0
    out, err = capsys.readouterr()
    assert "640x272" in out and "(4)" not in out and err == ""


@pytest.mark.parametrize("what", ["camvid", "ade20k", "stanford", "bsds", "frames"])
def test_what_is_not_there(tmp_path, what, capsys):
    assert main([what, str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_ctrl_c_ends_it_without_a_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "open_frames", interrupted)
    assert main(["frames", str(tmp_path)]) == 130
    assert capsys.readouterr() == ("", "data: interrupted\n")


def test_bsds(data_dir, tmp_path, capsys):
    source = data_dir / "bsds500" / "val"
    for part, suffix in (("images", "jpg"), ("groundTruth", "mat")):
        (tmp_path / "val" / part).mkdir(parents=True)
        for path in sorted((source / part).glob(f"*.{suffix}"))[:2]:
            shutil.copyfile(path, tmp_path / "val" / part / path.name)
    assert main(["bsds", str(tmp_path)]) == 0
    next((tmp_path / "val" / "groundTruth").iterdir()).write_bytes(b"x")
    assert main(["bsds", str(tmp_path)]) == 1
    assert ".mat" in capsys.readouterr().err
