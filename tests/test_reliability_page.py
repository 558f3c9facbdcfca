"""The page of faults has every row, and every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
ROWS = re.findall(r"^\| (\d+) \|(.*)\|$", PAGE, re.MULTILINE)
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def test_there_are_forty_faults_in_order():
    assert [int(number) for number, _ in ROWS] == list(range(1, 41))


@pytest.mark.parametrize(("number", "row"), ROWS)
def test_every_fault_has_a_test_or_a_reason(number, row):
    *_, shown_by = row.split(" | ")
    assert re.fullmatch(r"(`tests/\S+::\w+`( \([^)]+\))?(, )?)+|not a goal", shown_by.strip())
    assert "`tests/" in row or "is not a goal: " in row


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_test_named_exists(path):
    tree = ast.parse((ROOT / path).read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    missing = {name for where, name in NAMED if where == path} - found
    assert not missing
