"""Fixtures shared by all tests."""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from small_networks import steerable

from jimjax import cli
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.models.jimnet import JimNet
from jimjax.train import pretrained
from jimjax.train.run import Prediction

# Tests compile far more than they compute, and most of that is code generation: the optimiser of
# LLVM, emitters that make fast loops slowly, and threads for which there is no core. XLA's own
# passes, which decide what is fused with what, are left as they are. The flags are read when the
# first array is made. One that XLA does not know ends the process: the newer are for versions that
# were tried.
QUICK = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    QUICK += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")])

LONGEST = {"test_run.py", "test_jimnet.py", "test_battery.py", "test_em.py", "test_mixture.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def jimjax(capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs a command; gives exit code, stdout and the lines of stderr."""

    def run(*arguments: Any) -> tuple[int, str, list[str]]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What one test compiled, another with the same program need not compile again."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def _forgets_programs() -> Iterator[None]:
    """Frees what a file has compiled: thousands of programs in one process slow each other down."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def compiled() -> Callable[[Callable], Callable]:
    """Wraps a function of arrays, to be run as a batch of one under jit and vmap.

    Bind static options first, with ``functools.partial``. That every op does the same without
    the batch, and eagerly, is tested once for each, in ``tests/ops/test_battery.py``.
    """
    return _vmap_of_one


def _vmap_of_one(fn: Callable) -> Callable:
    batched = jax.jit(jax.vmap(fn))

    def call(*args: Any) -> Any:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], args)
        return jax.tree.map(lambda leaf: leaf[0], batched(*batch))

    return call


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for the time of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def tiny_jimnet() -> Network:
    """An untrained steerable Jim-Net for particles of 9 voxels and 3 classes."""
    config = steerable(box=9, num_classes=3)
    return functional.create(functools.partial(JimNet, config), jax.random.key(0))


@pytest.fixture(scope="session")
def smooth_volumes() -> Callable[[int, int], np.ndarray]:
    """Makes different smooth volumes inside a sphere, normalised; of a number and a box."""

    def make(num: int, box: int) -> np.ndarray:
        noise = np.random.default_rng(3).normal(size=(num, box, box, box))
        blurred = ndimage.gaussian_filter(noise, (0, 1.2, 1.2, 1.2), mode="wrap")
        radius = np.linalg.norm(np.indices((box,) * 3).T - box // 2, axis=-1)
        inside = blurred * (radius < 0.4 * box)
        centred = inside - inside.mean(axis=(1, 2, 3), keepdims=True)
        return (centred / centred.std(axis=(1, 2, 3), keepdims=True)).astype(np.float32)

    return make


@pytest.fixture
def posed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poses within classes that cost nothing, instead of those of a Jim-Net."""

    def pose(weights: Any, particles: Any, labels: np.ndarray, *, seed: int) -> Prediction:
        num = len(labels)
        turns = np.tile(np.eye(3, dtype=np.float32), (num, 1, 1))
        nothing = np.zeros((num, 0), np.float32)
        return Prediction(labels, nothing, nothing, turns, np.zeros((num, 3)), np.ones(num))

    monkeypatch.setattr(pretrained, "pose_classes", pose)
