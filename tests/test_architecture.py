# SPDX-License-Identifier: Apache-2.0
"""The picture and the page of the architecture show the rooms as they are."""

import importlib.util
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def architecture():
    spec = importlib.util.spec_from_file_location("architecture", DOCS / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_picture_has_the_arrows_of_the_code(architecture):
    """If not: python docs/architecture.py."""
    described = re.search(r"<dc:description>([^<]*)", architecture.PICTURE.read_text())[1]
    shown = set(described.replace("&gt;", ">").split("; "))
    assert shown == {f"{one} -> {other}" for one, other in architecture.arrows()}


def test_page_has_a_paragraph_for_each_room(architecture):
    page = (DOCS / "architecture.md").read_text()
    folders = {
        f"{package}.{path.parent.name}"
        for package in ("ctxseg_ros", "training")
        for path in (DOCS.parent / package).glob("*/__init__.py")
    }
    assert set(architecture.PURPOSES) == folders
    named = re.findall(r"^\*\*(\w+)\*\*", page, re.M)
    assert sorted(named) == sorted(room.split(".")[1] for room in folders)
