"""``jimjax doctor``: is everything in place to run here, and does a data set look right?"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jimjax.commands.particles import TiltedParticleOptions
from jimjax.commands.stop import Stop

if TYPE_CHECKING:
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "gemmi")
MAX_EXAMPLES = 100  # particles looked at for the contrast, files for their headers
CLEAR_CONTRAST = 3.0  # standard errors of the mean difference between centre and shell
CENTRE, SHELL = 0.25, (0.35, 0.5)  # radii, of the box


class Finding(NamedTuple):
    """One line of the diagnosis: ``status`` is ok, note, warning or FAILED."""

    status: str
    subject: str
    text: str


@dataclass(frozen=True)
class Doctor(TiltedParticleOptions):
    """Check versions, devices, folders and, if given, a particle STAR file.

    Ends with exit code 1 if something failed.

    Attributes:
        data: particle STAR file to check.
        out: also write the findings to this JSON file.
        seed: draws the particles and files looked at, where there are more than 100.
    """

    data: Path | None = None
    out: Path | None = None
    seed: int = 0

    def run(self) -> None:
        """Prints the findings one by one."""
        from jimjax.commands import files

        if self.out is not None:
            files.check_output_file(self.out, [] if self.data is None else [self.data])
        findings = []
        for finding in self._findings():
            print(f"{finding.status:<8} {finding.subject:<14} {finding.text}", flush=True)
            findings.append(finding)
        if self.out is not None:
            files.write_json(self.out, {"findings": [each._asdict() for each in findings]})
        num_failed = sum(finding.status == "FAILED" for finding in findings)
        if num_failed:
            raise Stop(f"{num_failed} checks failed", 1)

    def _findings(self) -> Iterator[Finding]:
        yield from _versions()
        yield from _devices()
        yield from _folders()
        if self.data is not None:
            yield from self._data()

    def _data(self) -> Iterator[Finding]:
        from jimjax.data.subtomograms import load

        particles = load(self.data, **self.reading)
        yield Finding("ok", "particles", f"{len(particles)} in {self.data}")
        yield Finding("ok", "box", f"{particles.volumes.shape[-1]} voxels")
        yield Finding("ok", "voxel size", f"{particles.voxel_size:g} A")
        low, high = particles.tilt_ranges.T
        text = f"lowest {low.min():g} to {low.max():g}, highest {high.min():g} to {high.max():g}"
        yield Finding("ok", "tilt range", f"{text} degrees")
        yield Finding("note", "contrast", _contrast(particles, self.seed))
        yield _headers(particles, self.seed)


def _versions() -> Iterator[Finding]:
    import jimjax

    yield Finding("ok", "jimjax", jimjax.__version__)
    yield Finding("ok", "python", platform.python_version())
    for name in PACKAGES:
        try:
            yield Finding("ok", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding("FAILED", name, "is not installed; pip install jimjax again")


def _devices() -> Iterator[Finding]:
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.devices()
    except RuntimeError as problem:
        yield Finding("FAILED", "devices", " ".join(str(problem).split()))
        return
    for device in devices:
        name = f"{device.platform} {device.id}"
        try:
            ones = jax.device_put(jnp.ones((16, 16, 16)), device)
            total = float(jnp.abs(jnp.fft.rfftn(ones)).sum())
        except RuntimeError as problem:
            yield Finding("FAILED", name, " ".join(str(problem).split()))
            continue
        is_right = abs(total - ones.size) < 1.0
        status, found = ("ok", "works") if is_right else ("FAILED", "gives wrong numbers")
        yield Finding(status, name, f"{device.device_kind}: a Fourier transform {found}")
    if all(device.platform == "cpu" for device in devices):
        yield Finding("note", "devices", "no accelerator; use the small preset")


def _folders() -> Iterator[Finding]:
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache and os.access(cache, os.W_OK):
        yield Finding("ok", "cache", f"compiled programs are kept in {cache}")
    else:
        yield Finding("warning", "cache", "no place to keep compiled programs; set XDG_CACHE_HOME")
    is_writable = os.access(Path.cwd(), os.W_OK)
    text = f"{Path.cwd()} {'may' if is_writable else 'may not'} be written"
    yield Finding("ok" if is_writable else "warning", "folder", text)


def _contrast(particles: "Subtomograms", seed: int) -> str:
    """Compares the centre of the box, where the particle is, with a shell around it."""
    import numpy as np

    volumes = particles.volumes[_examples(len(particles), seed)]
    size = volumes.shape[-1]
    z, y, x = np.indices(volumes.shape[1:]) - size // 2
    radius = np.sqrt(x**2 + y**2 + z**2) / size
    centre, shell = radius < CENTRE, (radius >= SHELL[0]) & (radius < SHELL[1])
    scale = volumes.std(axis=(1, 2, 3))
    differences = (volumes[:, centre].mean(axis=1) - volumes[:, shell].mean(axis=1)) / scale
    mean, error = differences.mean(), differences.std() / np.sqrt(len(differences))
    described = f"centre minus surroundings {mean:+.3f} +- {error:.3f} standard deviations"
    if len(differences) < 2 or abs(mean) < CLEAR_CONTRAST * error:
        return f"unclear ({described})"
    word = "dark" if mean < 0 else "light"
    return f"probably {word} protein ({described}); the configuration's data.contrast should agree"


def _examples(num: int, seed: int) -> "np.ndarray":
    """Rows to look at: all, or some drawn."""
    import numpy as np

    chosen = np.random.default_rng(seed).permutation(num)[:MAX_EXAMPLES]
    return np.sort(chosen)


def _headers(particles: "Subtomograms", seed: int) -> Finding:
    """Compares the voxel size of the image headers with the one in use."""
    from jimjax.data.columns import VOXEL_SIZE_TOLERANCE
    from jimjax.io.mrc import parse_image_name
    from jimjax.io.packed import read_voxel_size

    paths = list(dict.fromkeys(parse_image_name(name).path for name in particles.names))
    differing, unknown = [], 0
    chosen = _examples(len(paths), seed)
    for path in (paths[index] for index in chosen):
        size = read_voxel_size(path)
        if size is None:
            unknown += 1
        elif abs(size / particles.voxel_size - 1) > VOXEL_SIZE_TOLERANCE:
            differing.append(f"{path} {size:g} A")
    num = len(chosen)
    if differing:
        text = f"{len(differing)} of {num} differ from {particles.voxel_size:g} A: {differing[0]}"
        return Finding("warning", "headers", f"{text}; the STAR file's (or --voxel-size) is used")
    if unknown:
        return Finding("note", "headers", f"{unknown} of {num} give no voxel size")
    return Finding("ok", "headers", f"{num} image files give the same voxel size")
