"""Writes docs/ops.md and its gallery from the docstrings of ``jimjax.ops`` and docs/ops.in.md.

python docs/make.py
"""

import inspect
import itertools
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jimjax import ops
from jimjax.data.phantom import demo_phantoms, render

FOLDER = Path(__file__).parent
PLACE = "<!-- tables -->"
ENTRY = re.compile(r"^    (\w+): (.*)$")


def tables() -> str:
    """One table for each subject of ``ops.__all__``, which its comments name."""
    source = inspect.getsource(ops)
    listing = source[source.index("__all__ =") :]
    subjects: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if comment := re.match(r"    # (.*)", line):
            subjects[comment[1]] = []
        elif name := re.match(r'    "(\w+)",', line):
            subjects[list(subjects)[-1]].append(name[1])
    return "\n".join(_table(subject, names) for subject, names in subjects.items())


def _table(subject: str, names: list[str]) -> str:
    title = subject.partition(": ")[0]
    lines = [
        f"### {title}",
        "",
        "| name | what it does | takes | gives | source |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        value = getattr(ops, name)
        if inspect.ismodule(value):
            lines += [_row(f"{name}.{inner}", member) for inner, member in _members(value)]
        elif callable(value):
            lines.append(_row(name, value))
        else:
            lines.append(f"| `{name}` | constant {value} | | | |")
    return "\n".join(lines) + "\n"


def _members(module: ModuleType) -> list[tuple[str, object]]:
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


def _row(name: str, value: object) -> str:
    text = inspect.getdoc(value) or ""
    meaning = _clause(text.partition("\n")[0] + " ")
    takes = "; ".join(f"{arg}: {_clause(words)}" for arg, words in _entries(text, "Args"))
    if inspect.isclass(value):
        takes = "; ".join(f"{arg}: {_clause(words)}" for arg, words in _entries(text, "Attributes"))
    gives = _clause(_section(text, "Returns"))
    reference = re.search(r"^Reference: (.*?)(?:\n\n|\Z)", text, re.S | re.M)
    source = " ".join(reference[1].split()).rstrip(".") if reference else ""
    return f"| `{name}` | {meaning} | {takes} | {gives} | {source} |".replace("``", "`")


def _section(text: str, title: str) -> str:
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", text, re.M)
    return found[1] if found else ""


def _entries(text: str, title: str) -> list[tuple[str, str]]:
    entries: list[tuple[str, str]] = []
    for line in _section(text, title).splitlines():
        if start := ENTRY.match(line):
            entries.append((start[1], start[2]))
        elif entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
    return entries


def _clause(words: str) -> str:
    """The first sentence, without a table's column mark."""
    joined = " ".join(words.split())
    return re.split(r"(?<=[\w`)\]])[.;](?: |$)", joined)[0].replace("|", r"\|")


def gallery() -> None:
    """Central slices of one volume, and of what the ops make of it."""
    volume = render(demo_phantoms(1)[0], (32, 32, 32))
    turn = ops.about_axis(0, jnp.pi / 5)
    wedge = ops.wedge_mask(volume.shape, jnp.array([-60.0, 60.0]))
    noisy = volume + jax.random.normal(jax.random.key(0), volume.shape) * volume.std() * 1.5
    pictures = {
        "volume": volume,
        "rotate": ops.rotate(volume, turn, order=3),
        "wedge_mask": jnp.fft.fftshift(wedge, axes=(0, 1)),
        "apply_mask": ops.apply_mask(volume, wedge),
        "bandpass": ops.bandpass(volume, high=0.1, soft=0.05),
        "with noise": noisy,
        "gaussian": ops.gaussian(noisy, 1.5),
        "bilateral": ops.bilateral(noisy, sigma_space=2.0, sigma_range=3 * volume.std(), radius=2),
        "difference_of_gaussians": ops.difference_of_gaussians(noisy, 2.0, ratio=1.6),
        "fourier_resize": ops.fourier_resize(volume, 16),
    }
    figure, axes = plt.subplots(2, 5, figsize=(10, 4.4))
    for axis, (name, picture) in zip(itertools.chain(*axes), pictures.items(), strict=True):
        section = np.asarray(picture)[:, picture.shape[1] // 2]
        axis.imshow(section, cmap="gray", origin="lower", aspect="auto")
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(FOLDER / "gallery.png", dpi=100)


def page() -> str:
    """The whole of docs/ops.md."""
    return (FOLDER / "ops.in.md").read_text().replace(PLACE, tables())


if __name__ == "__main__":
    gallery()
    (FOLDER / "ops.md").write_text(page())
