"""Fast and accurate alignment: rotational matching in a band that is raised, with refinement."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.ops import rotational_matching, search
from jimjax.ops.refinement import refine_pose
from jimjax.ops.rotation import Pose
from jimjax.ops.search import Matches

FIRST_BAND = 0.5  # of the cutoff: where the band begins
NUM_STEPS = 6  # of refinement, in every band


def fast_accurate_matching(
    template: jax.Array,
    volume: jax.Array,
    *,
    max_shift: float,
    template_wedge: jax.Array | None = None,
    volume_wedge: jax.Array | None = None,
    cutoff: float = 0.5,
    max_degree: int = 24,
    num_bands: int = 3,
    num_candidates: int = 16,
    num_kept: int = 4,
    num_best: int = 1,
) -> Matches:
    """Finds the poses that carry a template into a volume best, from low frequencies to higher.

    In every band, from half of the cutoff up to it, the best poses of ``fast_rotational_matching``
    join those kept from the band before; all are refined by ``refine_pose``, and the best that are
    apart are kept. Low frequencies have few and broad maxima, so that a pose found there leads to
    the right one of the many narrow maxima of the next band. Poses are constants for autodiff.

    Args:
        template: ``(z, y, x)``.
        volume: same shape.
        max_shift: largest shift along any axis before refinement, voxels. May be traced.
        template_wedge: as in ``search_rotations``.
        volume_wedge: as in ``search_rotations``.
        cutoff: radius of the last band, cycles per voxel, at most 0.5.
        max_degree: highest degree of the harmonics, even.
        num_bands: how many bands.
        num_candidates: rotations of each band that are tried with all translations.
        num_kept: how many of them are refined, and kept for the next band.
        num_best: how many to return.

    Returns:
        ``Matches``, best first, one grid spacing (180 / (max_degree + 1) degrees) apart or more.

    Raises:
        ValueError: if shapes do not fit or an option is out of range.

    Reference: Chen et al. 2013, Fast and accurate reference-free alignment of subtomograms; after
    its abstract: spherical harmonics, a band that is raised, the missing wedge as constraint. Its
    schedule and its refinement are not reproduced.
    """
    if num_bands < 1:
        raise ValueError(f"num_bands must be 1 or more, got {num_bands}")
    if num_kept < num_best:
        raise ValueError(f"num_kept must be at least num_best = {num_best}, got {num_kept}")
    lowest = max(FIRST_BAND * cutoff, 1 / min(jnp.shape(volume), default=1))
    bands = np.linspace(lowest, cutoff, num_bands) if num_bands > 1 else [cutoff]
    wedges = {"template_wedge": template_wedge, "volume_wedge": volume_wedge}
    kept = None
    for band in map(float, bands):
        found = rotational_matching.fast_rotational_matching(
            template,
            volume,
            max_shift=max_shift,
            cutoff=band,
            max_degree=max_degree,
            num_candidates=num_candidates,
            num_best=num_kept,
            **wedges,
        )
        if kept is not None:
            found = jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, found)
        refine = functools.partial(refine_pose, cutoff=band, num_steps=NUM_STEPS, **wedges)
        refined = jax.vmap(refine, (None, None, 0))(template, volume, found.pose)
        # A candidate that was none stays none.
        scores = jnp.where(found.score > -jnp.inf, refined.score, -jnp.inf)
        kept = _best_apart(Matches(refined.pose, scores), num_kept, math.pi / (max_degree + 1))
    return jax.tree.map(lambda field: field[:num_best], kept)


def _best_apart(found: Matches, num: int, min_angle: float) -> Matches:
    poses, scores = found
    chosen = search.pick_distinct(scores, poses.rotation, num=num, min_angle=min_angle)
    scores = jnp.where(chosen >= 0, scores[chosen], -jnp.inf)
    return Matches(Pose(*(field[chosen] for field in poses)), scores)
