"""Rules that every public operation keeps, so that no review has to."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

from jimjax import ops


def _public(module: ModuleType) -> dict[str, object]:
    """Functions and classes that a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


MODULES = [
    importlib.import_module(f"jimjax.ops.{info.name}")
    for info in pkgutil.iter_modules(ops.__path__)
    if not info.name.startswith("_")
]
BEHIND_THEIR_MODULE = (ops.kmeans, ops.mixture, ops.normal, ops.warp2d)
LISTED = {name: getattr(ops, name) for name in ops.__all__} | {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in BEHIND_THEIR_MODULE
    for name, value in _public(module).items()
}
FUNCTIONS = {name: value for name, value in LISTED.items() if inspect.isfunction(value)}
RECORDS = {name: value for name, value in LISTED.items() if inspect.isclass(value)}
NEW_PACKAGES = """
import sys
import jax, jax.numpy, numpy
before = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
import jimjax.ops
print(*({name.partition(".")[0] for name in sys.modules} - before))
"""


def _parameters(function) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_everything_public_is_listed(module):
    listed = [id(value) for value in LISTED.values()]
    missing = {name for name, value in _public(module).items() if id(value) not in listed}
    assert not missing


def test_no_name_is_listed_twice():
    assert len(set(ops.__all__)) == len(ops.__all__)


def test_import_brings_jax_and_numpy_alone():
    found = subprocess.run(
        [sys.executable, "-c", NEW_PACKAGES], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["jimjax"]


@pytest.mark.parametrize("name", [*FUNCTIONS, *RECORDS])
def test_docstring_opens_with_a_sentence(name):
    opening = (LISTED[name].__doc__ or "").partition("\n")[0]
    assert opening.endswith(".")
    assert len(opening) <= 92


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_describes_every_argument_and_the_result(name):
    text = inspect.getdoc(FUNCTIONS[name])
    parameters = _parameters(FUNCTIONS[name])
    if parameters:
        assert "\nArgs:\n" in text
        assert "\nReturns:\n" in text
    for parameter in parameters:
        assert f"\n    {parameter.name}: " in text


@pytest.mark.parametrize("name", RECORDS)
def test_docstring_describes_every_field(name):
    text = inspect.getdoc(RECORDS[name])
    for field in RECORDS[name]._fields:
        assert f"\n    {field}: " in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_and_result_has_a_type(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("name", FUNCTIONS)
def test_random_key_is_called_key_and_comes_first(name):
    names = [parameter.name for parameter in _parameters(FUNCTIONS[name])]
    assert "rng" not in names
    assert "key" not in names[1:]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_keywords(name):
    for parameter in _parameters(FUNCTIONS[name]):
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
