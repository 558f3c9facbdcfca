"""Pairwise methods of the benchmark: one particle is aligned to another, and knows nothing else."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import jax
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms
    from jimjax.ops import Matches

NUM_PAIRS = 100
CUTOFF = 0.25  # cycles per voxel
SEARCH_CUTOFF = 0.15  # of the first, complete search
NUM_ROTATIONS = 4608  # of it, 12 degrees apart
NUM_KEPT = 8  # of these, that are refined
FINE_STEPS = 5.0, 2.5, 1.25  # degrees, of the lattices around what is kept, one after another


class _Case(Protocol):
    """What is used of a benchmark's case."""

    fresh: "Subtomograms"
    groups: "Sequence[np.ndarray]"
    max_shift: float
    seed: int


def _measure_pairs(
    match: Callable[..., "Matches"], case: _Case
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores a method on pairs of one class.

    Args:
        match: of a template, a volume, their wedges and ``max_shift``.
        case: with particles and their truth.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jimjax.evaluate.pose import sample_pairs

    truth = case.fresh
    first, second = sample_pairs(truth.labels, max_pairs=NUM_PAIRS, seed=case.seed)
    match = jax.jit(functools.partial(match, max_shift=2 * case.max_shift))

    def find(a: int, b: int) -> tuple["np.ndarray", "np.ndarray"]:
        template, volume = jnp.asarray(truth.volumes[a]), jnp.asarray(truth.volumes[b])
        wedges = {
            "template_wedge": jnp.asarray(truth.tilt_ranges[a]),
            "volume_wedge": jnp.asarray(truth.tilt_ranges[b]),
        }
        best = match(template, volume, **wedges)
        return np.asarray(best.pose.rotation[0]), np.asarray(best.pose.shift[0])

    find(first[0], second[0])  # compiles
    started = time.monotonic()
    rotations, shifts = zip(*map(find, first, second), strict=True)
    seconds = time.monotonic() - started
    found = np.array(rotations), np.array(shifts)
    return _score(case, *found, (first, second), seconds)


def _measure_gumnet(case: _Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores what a Gum-Net answers when asked once about each pair."""
    import numpy as np

    from jimjax.align.gumnet import Centred, align_pairs, centre
    from jimjax.commands.align_network import open_weights
    from jimjax.data.subtomograms import normalize
    from jimjax.evaluate.pose import sample_pairs

    truth = case.fresh
    first, second = sample_pairs(truth.labels, max_pairs=NUM_PAIRS, seed=case.seed)
    network = open_weights(None, "gumnet", truth.volumes.shape[-1]).network
    volumes = normalize(truth.volumes)
    align_pairs(network, *[Centred(volumes[:1], np.zeros((1, 3)))] * 2)  # compiles
    started = time.monotonic()
    moved = centre(volumes, truth.tilt_ranges, max_shift=case.max_shift)
    pairs = (Centred(moved.volumes[rows], moved.offsets[rows]) for rows in (first, second))
    found = align_pairs(network, *pairs)
    seconds = time.monotonic() - started
    return _score(case, *found, (first, second), seconds)


def _score(
    case: _Case,
    rotations: "np.ndarray",
    shifts: "np.ndarray",
    pairs: tuple["np.ndarray", "np.ndarray"],
    seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    from jimjax.evaluate.pose import compare_relative, score_poses

    truth = case.fresh
    errors = compare_relative(
        rotations, shifts, truth.labels, truth.rotations, truth.shifts, pairs, groups=case.groups
    )
    details = {"seconds_per_particle": seconds / len(pairs[0]), "scored_on": "fresh"}
    return score_poses(errors), details


def _match_ht(*pair: "jax.Array", **how: Any) -> "Matches":
    from jimjax import ops

    return ops.fast_rotational_matching(*pair, cutoff=CUTOFF, **how)


def _match_fa(*pair: "jax.Array", **how: Any) -> "Matches":
    from jimjax import ops

    return ops.fast_accurate_matching(*pair, cutoff=CUTOFF, **how)


def _match_search(*pair: "jax.Array", **how: Any) -> "Matches":
    """Tries all rotations and shifts at low frequencies, then those around the best at higher."""
    import jax.numpy as jnp
    import numpy as np

    from jimjax import ops

    rotations = ops.super_fibonacci(NUM_ROTATIONS)
    coarse = ops.search_rotations(
        *pair,
        rotations,
        cutoff=SEARCH_CUTOFF,
        num_best=NUM_KEPT,
        min_angle=np.deg2rad(FINE_STEPS[0]),
        **how,
    )
    around = coarse.pose.rotation
    for degrees in FINE_STEPS:
        turned = jnp.einsum("lij,rjk->lrik", _turns_around(degrees), around, precision="highest")
        fine = ops.search_rotations(*pair, turned.reshape(-1, 3, 3), cutoff=CUTOFF, **how)
        around = fine.pose.rotation
    return fine


def _turns_around(degrees: float) -> "jax.Array":
    """No turn and those to the neighbours on a lattice of rotation vectors: ``(27, 3, 3)``."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jimjax import ops

    axis = np.arange(-1, 2) * np.deg2rad(degrees)
    vectors = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    return jax.vmap(ops.from_rotation_vector)(jnp.asarray(vectors, jnp.float32))


METHODS: dict[str, Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]] = {
    "gumnet": _measure_gumnet,
    "ht": functools.partial(_measure_pairs, _match_ht),
    "fa": functools.partial(_measure_pairs, _match_fa),
    "search": functools.partial(_measure_pairs, _match_search),
}
