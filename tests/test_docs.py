"""The page about the ops is what its script writes, and its recipes do what they say."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make", DOCS / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    # If this fails: python docs/make.py
    assert (DOCS / "ops.md").read_text() == make.page()


def test_recipes_run_and_print_what_their_comments_say():
    recipes = re.findall(r"```python\n(.*?)```", (DOCS / "ops.md").read_text(), re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("\n".join(recipes), {})
    angle, correlation, shape = printed.getvalue().splitlines()
    assert float(angle) < 1
    assert float(correlation) > 0.98
    assert shape == "(20, 32, 32, 32)"
