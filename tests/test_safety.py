"""Nothing that is read can run code: no module unpickles or executes what it is given."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for part in ("jimjax", "benchmarks") for path in (ROOT / part).rglob("*.py"))
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "os.system", "np.fromfile"}


def _dotted(node):
    """The name of what is called, such as np.load."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _unsafe(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (name for name in names if name.split(".")[0] in UNSAFE_MODULES)
        if isinstance(node, ast.Call):
            name = _dotted(node.func)
            options = {option.arg: option.value for option in node.keywords}
            if name in UNSAFE_CALLS:
                yield name
            if name == "np.load" and ast.dump(options.get("allow_pickle", node)) != ast.dump(
                ast.Constant(False)
            ):
                yield "np.load without allow_pickle=False"
            if name.startswith("subprocess.") and "shell" in options:
                yield f"{name} of a shell"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_runs_no_data(path):
    assert not list(_unsafe(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_what_is_unsafe_would_be_found(text):
    assert len(list(_unsafe(ast.parse(text)))) == 1
