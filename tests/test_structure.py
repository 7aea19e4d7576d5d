"""Floors: measures, tools and pictures take any embedding and know no model."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import unbraid

ROOT = Path(unbraid.__file__).parent


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", ["metrics", "tl", "pl", "pp"])
def test_no_room_of_the_wing_imports_a_model(room):
    files = list((ROOT / room).rglob("*.py"))
    assert len(files) > 1
    found = {
        (path.name, name)
        for path in files
        for name in imported(path)
        if name.startswith(("unbraid.model", "unbraid.module", "unbraid.train", "unbraid.benchmark"))
    }
    assert not found
