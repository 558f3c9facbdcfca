"""Poses of particles one by one against given maps, for ``jimjax align`` and ``refine``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from jimjax.align.fit import Found
    from jimjax.align.fit_data import Options
    from jimjax.align.plans import Start
    from jimjax.data.subtomograms import Subtomograms


def climb_to_references(
    particles: "Subtomograms", references: "np.ndarray", start: "Start", options: "Options"
) -> "Found":
    """Refines poses against maps that stay as they are, with a progress bar."""
    from jimjax.align.gradient_fit import fit_poses
    from jimjax.commands.progress import open_progress

    with open_progress() as progress:
        return fit_poses(particles, references, start, options, progress=progress)


def match_references(
    particles: "Subtomograms", references: "np.ndarray", method: str, options: "Options"
) -> "Found":
    """Finds poses by "ht" or "fa", and classes by the best score, with a progress bar."""
    from jimjax.align.pairwise import MATCHERS, match_all
    from jimjax.commands.progress import open_progress

    with open_progress() as progress:
        return match_all(particles, references, options, MATCHERS[method], progress=progress)
