# SPDX-License-Identifier: Apache-2.0
"""The pages state facts that hold: links, names, commands, options, figures; never the wording."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from markdown.extensions.toc import slugify

from ctxseg_ros import cli
from ctxseg_ros.model import store
from ctxseg_ros.ros import camera, report
from ctxseg_ros.ros.diagnostics import CAUSES
from ctxseg_ros.ros.settings import SETTINGS
from training import __main__ as training

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "ctxseg_ros/models/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
FOR_USERS = [page for page in PAGES if not page.startswith("benchmarks")]


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(page: str) -> list[str]:
    """The inline code of a page, each on one line."""
    text = without_code((ROOT / page).read_text())
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command in the page's shell blocks and inline code."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", (ROOT / page).read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in [*lines, *(span for span in spans(page) if " " in span)]:
        for part in re.split(r" && ", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # inline code that is not a command
                continue
            if words:
                yield words


@pytest.fixture(scope="module")
def tables() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date(tables: types.ModuleType) -> None:
    """If not: python docs/tables.py."""
    for page in tables.PAGES:
        assert tables.filled(page) == (ROOT / "docs" / page).read_text(), page


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", without_code(page.read_text()), re.MULTILINE):
        name = slugify(heading.replace("`", ""), "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = without_code((ROOT / page).read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.is_file(), link
        assert target.resolve().is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", FOR_USERS)
def test_named_files_exist(page: str) -> None:
    folders = "ctxseg_ros|training|benchmarks|config|docs|tests|launch"
    for span in spans(page):
        if re.fullmatch(rf"(?:{folders})/[\w./*-]+", span) and "NAME" not in span:
            assert list(ROOT.glob(span.rstrip("/"))), span


@pytest.mark.parametrize("page", FOR_USERS)
def test_named_modules_exist(page: str) -> None:
    for span in spans(page):
        if re.fullmatch(r"(?:ctxseg_ros|training)(?:\.[A-Za-z_]\w*)+", span):
            *parts, last = span.split(".")
            path = ROOT.joinpath(*parts)
            if not (path / last).is_dir() and not (path / f"{last}.py").is_file():
                code = (
                    path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                ).read_text()
                assert re.search(rf"\b{last}\b", code), span


@pytest.mark.parametrize("page", FOR_USERS)
def test_make_commands_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split()
    for name, *words in commands(page):
        if name == "make":
            for word in words:
                variable, assigned, _ = word.partition("=")
                assert f"$({variable})" in makefile if assigned else word in targets, word


def help_of(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        training.main([*words, "--help"])
    assert ended.value.code == 0, words
    return capsys.readouterr().out


@pytest.mark.parametrize("page", FOR_USERS)
def test_training_commands_and_their_options_exist(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        *_, command = words[:4]
        if words[1:3] != ["-m", "training"] or command in ("training", "COMMAND", "--help"):
            continue
        rest = words[4:]
        assert command in training.COMMANDS
        if command == "fit":  # parsed with its values, which its recipe must have a place for
            if rest:
                with pytest.raises(SystemExit) as ended:
                    training.main([command, *rest, "--print_config"])
                assert ended.value.code == 0, words
            continue
        described = help_of(capsys, [command])
        choices = re.search(r"\{([\w,]+)\}", described) if command in ("data", "evaluate") else None
        if choices and rest and rest[0] != "NAME":
            assert rest[0] in choices[1].split(",")
            described = help_of(capsys, [command, rest[0]])
        for word in rest:
            if word.startswith("--"):
                assert re.search(rf"{word}\b", described), (words, word)


@pytest.mark.parametrize("page", FOR_USERS)
def test_ctxseg_commands_exist(page: str) -> None:
    for words in commands(page):
        if words[0] == "ctxseg" and len(words) > 1 and words[1].islower():
            with pytest.raises(SystemExit) as ended:
                cli.main([words[1], "--help"])
            assert ended.value.code == 0, words


@pytest.mark.parametrize("page", FOR_USERS)
def test_launch_files_and_arguments_exist(page: str, tables: types.ModuleType) -> None:
    every: set[str] = set()
    for path in (ROOT / "launch").glob("*.py"):
        every |= set(tables.arguments(path.name))
    for words in commands(page):
        if words[:3] == ["ros2", "launch", "ctxseg_ros"]:
            given = {word.partition(":=")[0] for word in words[4:] if ":=" in word}
            assert given <= set(tables.arguments(words[3])), words
        if words[:3] == ["ros2", "param", "set"]:
            assert words[4] in SETTINGS
            SETTINGS[words[4]].value(words[4], words[5])
    for span in spans(page):
        if match := re.match(r"(\w+):=", span):
            assert match[1] in every, span


def test_names_in_the_pages_on_the_node_exist(tables: types.ModuleType) -> None:
    known = {*SETTINGS, *camera.SETTINGS, *camera.VALUES, *store.model_names()}
    known |= {*report.NODE_VALUES, *report.COUNTS, *report.CAMERA_VALUES, "class_names"}
    known |= {*tables.arguments("segment.launch.py"), *tables.arguments("demo.launch.py")}
    known |= {"segment_node", "camera_node", "frame_id", "camera_info", "load_model", "ctxseg_ros"}
    known |= {"demo_out", *tables.ENCODINGS}
    pages = ("getting_started", "node_reference", "troubleshooting", "containers")
    for page in pages:
        for span in spans(f"docs/{page}.md"):
            if re.fullmatch(r"[a-z]+(?:_[a-z0-9]+)+", span):
                assert span in known, f"{page}: {span}"
        for name in re.findall(r"`(\w+): [^`]+`", (ROOT / "docs" / f"{page}.md").read_text()):
            assert name in SETTINGS, f"{page}: {name}"


def test_every_recipe_is_described() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    described = set()
    for row in re.findall(r"^\| (`.*)$", text.partition("## Recipes")[2], re.MULTILINE):
        described |= set(re.findall(r"`(\w+)`", row.partition("|")[0]))
    recipes = {path.stem for path in (ROOT / "training" / "configs").glob("*.yaml")}
    assert described == recipes - {"streets"}


def test_table_of_models(tables: types.ModuleType) -> None:
    """Names, outputs, scores and times in the README are those of the files and the results."""
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(\S+\) \| (.*) \| (.*) \| (\d+) \|$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    assert sorted(row[0] for row in rows) == sorted(store.model_names())
    for name, output, score, ms in rows:
        info = store.load(name)
        if info.classes:
            assert re.match(rf"{len(info.classes)} ", output), name
        size = f"{info.size[0]}x{info.size[1]}"
        assert round(tables.measured()[name, size, "openvino"]["p50_ms"]) == int(ms), name
        for path in RESULTS.glob(f"{name}_camvid_val.json"):
            miou = 100 * json.loads(path.read_text())["miou"]
            assert f"{miou:.1f} mIoU on CamVid val" in score, name


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    assert (tmp_path / "site" / "repository/ctxseg_ros/models/unet/index.html").is_file()


def test_workflow_and_hooks_call_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    versions = workflow["jobs"]["fast"]["strategy"]["matrix"]["python"]
    assert versions == [f"3.{minor}" for minor in range(10, 15)]
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            for target in re.findall(r"^make (\S+)", step.get("run", ""), re.MULTILINE):
                assert target in re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split()
            for file in re.findall(r"tests/\S+\.py", step.get("run", "")):
                assert (ROOT / file).is_file()
    lint = set(re.findall(r"\$\(VENV\)/bin/(ruff check|ruff format --check|mypy)", makefile))
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["entry"].removeprefix(".venv/bin/") for hook in hooks["hooks"]} == lint


def test_citation_is_valid() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    (paper,) = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Mazumdar", "Lee", "Kim"]


def test_places_where_frames_are_counted() -> None:
    """The contributing page names every file that drops frames, with its causes."""
    text = (ROOT / "docs" / "contributing.md").read_text()
    section = text.partition("## Find where a dropped frame is counted")[2].partition("\n## ")[0]
    named = {
        file: set(re.findall(r"`(\w+)`", causes))
        for file, causes in re.findall(r"`(\w+\.py)` \(([^)]*)\)", " ".join(section.split()))
    }
    counted: dict[str, set[str]] = {}
    for path in (ROOT / "ctxseg_ros" / "ros").glob("*.py"):
        for cause in re.findall(r"(?:counts\.add|\bdrop)\(\s*\"(\w+)\"", path.read_text()):
            if cause in CAUSES:
                counted.setdefault(path.name, set()).add(cause)
    assert named == counted
