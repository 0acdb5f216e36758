# SPDX-License-Identifier: Apache-2.0
"""The table of label efficiency: its rows, its file, and two rows trained for real."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import label_efficiency
from benchmarks.label_efficiency import BACKBONES, MODES, Backbone, Case, Results, Settings
from training.networks.encoder import Encoder

pytestmark = pytest.mark.slow

SETTINGS = Settings(steps=3, size="35x50", batch=2, precision="32-true")


def made_row(case: Case, miou: float = 0.5, weights: str = "w 1") -> dict:
    return {
        "backbone": case.backbone,
        **MODES[case.mode],
        "share": case.share,
        "frames": round(367 * case.share),
        "steps": 3,
        "size": "32x48",
        "weights": weights,
        "miou": miou,
        "seconds": 1.0,
    }


def test_rows_are_all_of_the_table_and_patterns_choose() -> None:
    every = label_efficiency.cases(["*"])
    assert len(set(every)) == 27
    assert len({case.name for case in every}) == 27
    found = label_efficiency.cases(["dino_tiny/linear/5", "deit_tiny/*/100"])
    assert [case.name for case in found] == [
        "dino_tiny/linear/5" if mode == "dino" else f"deit_tiny/{mode}/100"
        for mode in ("linear", "dino", "mask", "full")
    ]
    with pytest.raises(ValueError, match=r"resnet/\* matches none of deit_tiny/linear/5, "):
        label_efficiency.cases(["deit_tiny/*", "resnet/*"])


@pytest.mark.parametrize(
    ("patch", "expected"), [(14, (350, 476)), (16, (352, 480)), (400, (400, 400))]
)
def test_size_is_rounded_to_the_patch(patch: int, expected: tuple[int, int]) -> None:
    assert label_efficiency.rounded("352x480", patch) == expected


def test_rows_outlive_a_kill_and_are_replaced_not_doubled(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    cases = label_efficiency.cases(["deit_tiny/*"])
    results = Results(path, SETTINGS)
    for case in cases:
        results.add(made_row(case))
        assert json.loads(path.read_text())["results"] == results.rows
    results = Results(path, SETTINGS)
    results.add(made_row(cases[0], 0.75, "w 2"))
    found = Results(path, SETTINGS).rows
    assert len(found) == len(cases)
    for case in cases:
        row = label_efficiency.matching(found, case)
        assert row is not None and row["miou"] == (0.75 if case == cases[0] else 0.5)
    assert label_efficiency.matching(found, Case("dino_tiny", "linear", 0.05)) is None


def test_files_of_other_settings_or_none_of_ours_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    Results(path, SETTINGS).add(made_row(Case("deit_tiny", "full", 1.0)))
    other = Settings(steps=4, size="35x50", batch=2, precision="32-true")
    with pytest.raises(ValueError, match="made with steps 3, not 4: give the same, or another"):
        Results(path, other)
    with monkeypatch.context() as changed:
        changed.setitem(label_efficiency.RATES, "linear", 1.0)
        with pytest.raises(ValueError, match="made with recipe"):
            Results(path, SETTINGS)
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match="not what this benchmark writes"):
            Results(path, SETTINGS)


def test_table_has_a_cell_for_each_share_and_the_plot_is_drawn(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json", SETTINGS)
    scores = {}
    for number, case in enumerate(label_efficiency.cases(["*"])):
        scores[case] = 0.2 + 0.02 * number
        if case != Case("dinov2_small", "full", 0.2):
            results.add(made_row(case, scores[case]))
    lines = label_efficiency.table(results.page()).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert cells[0][2:] == ["5 % (18 frames)", "20 % (73 frames)", "100 % (367 frames)"]
    assert {len(row) for row in cells} == {5} and len(cells) == 2 + 9
    for row in cells[2:]:
        (backbone,) = (name for name in BACKBONES if BACKBONES[name].title == row[0])
        (mode,) = (name for name in MODES if label_efficiency.MODE_NAMES[name] == row[1])
        for share, cell in zip(label_efficiency.SHARES, row[2:], strict=True):
            case = Case(backbone, mode, share)
            missing = case == Case("dinov2_small", "full", 0.2)
            assert cell == ("-" if missing else f"{100 * scores[case]:.1f}")
    label_efficiency.plot(results.rows, tmp_path / "plot.png")
    picture = cv2.imread(str(tmp_path / "plot.png"))
    assert picture is not None and picture.std() > 10


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line for small data and small ViTs; its results are written as r.json."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 2)):
        for part in ("images", "labels"):
            (tmp_path / split / part).mkdir(parents=True)
        for number in range(count):
            image = cv2.resize(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), (48, 32))
            name = f"{number:02}.png"
            cv2.imwrite(str(tmp_path / split / "images" / name), image)
            label = (image.mean(2) // 24).clip(0, 10).astype(np.uint8)
            cv2.imwrite(str(tmp_path / split / "labels" / name), label)
    small = {name: Backbone(BACKBONES[name].title, "test_vit", 16) for name in BACKBONES}
    monkeypatch.setattr(label_efficiency, "BACKBONES", small)
    torch.save(Encoder("test_vit", (160, 160)).vit.state_dict(), tmp_path / "w.pth")
    options = {
        "steps": 3,
        "size": "35x50",
        "batch": 2,
        "workers": 0,
        "data": tmp_path,
        "deit-tiny": tmp_path / "w.pth",
        "dino-tiny": tmp_path / "none.ckpt",
        "json": tmp_path / "r.json",
    }
    return [f"--{key}={value}" for key, value in options.items()]


def test_rows_are_trained_scored_and_not_trained_again(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["--rows", "deit_tiny/linear/5", "deit_tiny/full/20"]
    assert label_efficiency.main([*command, *rows]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found.keys() == {"machine", "commit", "settings", "results"}
    first, second = found["results"]
    assert (first["head"], first["frozen"], first["frames"]) == ("linear", True, 2)
    assert (second["head"], second["frozen"], second["frames"]) == ("mask", False, 8)
    for row in (first, second):
        assert (row["steps"], row["size"]) == (3, "32x48")
        assert 0 < row["miou"] < 1 and row["weights"].startswith("w.pth ")
    assert (tmp_path / "r.png").exists() and "| full |" in (tmp_path / "r.md").read_text()

    assert label_efficiency.main([*command, *rows]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["results"] == [first, second]
    # Other weights under the name: that row is stale. The seed decides the rest.
    torch.manual_seed(5)
    torch.save(Encoder("test_vit", (160, 160)).vit.state_dict(), tmp_path / "w.pth")
    assert label_efficiency.main([*command, "--rows", "deit_tiny/linear/5"]) == 0
    again = json.loads((tmp_path / "r.json").read_text())["results"]
    assert again[0] == second and again[1]["weights"] != first["weights"]
    assert "1/1 deit_tiny/linear/5: 2 frames, mIoU" in capsys.readouterr().out


def test_a_row_is_the_same_whatever_ran_before(command: list[str], tmp_path: Path) -> None:
    for name, rows in (("a", ["deit_tiny/mask/5"]), ("b", ["deit_tiny/[lm]*/5"])):
        path = tmp_path / f"{name}.json"
        assert label_efficiency.main([*command, f"--json={path}", "--rows", *rows]) == 0
    last = [json.loads((tmp_path / f"{n}.json").read_text())["results"][-1] for n in "ab"]
    assert last[0]["miou"] == last[1]["miou"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rows", "dino_tiny/linear/5"], "give --dino-tiny"),
        (["--rows", "nothing"], "matches none of"),
        (["--rows", "deit_tiny/linear/5", "--batch=3"], "fewer than one batch of 3"),
        (["--rows", "deit_tiny/linear/5", "--size=big"], "not HEIGHTxWIDTH"),
    ],
)
def test_bad_input_is_one_line(
    command: list[str], options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label_efficiency.main([*command, *options]) == 2
    assert said in capsys.readouterr().err
