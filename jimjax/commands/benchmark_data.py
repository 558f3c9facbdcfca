"""The particles of the benchmarks: those that methods are fitted to, and fresh ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms

BOX, VOXEL_SIZE, TILT_RANGE, MAX_SHIFT = 32, 12.0, (-60.0, 60.0), 6.0
MTF = 0.4  # of Nyquist, as simulated for data of this kind
LEAST_SIMILARITY = 0.98  # of a symmetric structure and its copies
NUM_PHANTOMS = 5  # classes where no structures are given
BACKGROUND = 0.82  # share of particles that are none; 15 167 of 18 419 in the rat neuron table
CLUTTER_SHIFT = 0.4  # largest displacement of a molecule in the background, fraction of the box


class Preset(NamedTuple):
    """How much there is.

    Attributes:
        num_per_class: particles of each class to fit or train on.
        num_fresh: particles of each class that nothing was fitted to.
        pretrain_steps: of a Jim-Net of the paper's size; None for the small one with the weights
            that come along, which is not trained any more.
    """

    num_per_class: int
    num_fresh: int
    pretrain_steps: int | None


PRESETS = {"small": Preset(100, 50, None), "paper": Preset(1000, 200, 20000)}


def read_densities(structures: Sequence[Path], symmetries: Sequence[str], seed: int) -> list[Any]:
    """Arrays of structures, or phantoms; symmetric ones in the setting of their group.

    Args:
        structures: files, one per class; ``NUM_PHANTOMS`` phantoms if there are none.
        symmetries: point group of each; all C1 if there are none.
        seed: of the phantoms.

    Raises:
        InputError: if a structure does not have the symmetry that it is said to have.
    """
    from jimjax.data.phantom import demo_phantoms
    from jimjax.data.structures import density_from_file

    if not structures:
        return list(demo_phantoms(NUM_PHANTOMS, seed, shape=(BOX,) * 3))
    grid = {"voxel_size": VOXEL_SIZE, "resolution": 2 * VOXEL_SIZE, "box": BOX}
    densities = [density_from_file(path, **grid) for path in structures]
    for number, name in enumerate(symmetries):
        densities[number] = _turn(densities[number], name, structures[number])
    return densities


def simulate_particles(
    densities: Sequence[Any],
    preset: Preset,
    *,
    snr: float,
    seed: int,
    ctf: bool,
    mask_threshold: float | None = None,
) -> tuple["Subtomograms", "Subtomograms"]:
    """Particles to fit, and fresh ones, the same number of each class; see ``simulate``."""
    import jax

    keys = jax.random.split(jax.random.key(seed))
    numbers = preset.num_per_class, preset.num_fresh
    fitted, fresh = (
        _simulate(key, densities, num, snr, ctf, mask_threshold)
        for key, num in zip(keys, numbers, strict=True)
    )
    return fitted, fresh


def simulate_imbalanced(
    densities: Sequence[Any], preset: Preset, *, snr: float, seed: int, ctf: bool
) -> tuple["Subtomograms", "Subtomograms"]:
    """Particles among many that are none, as picks of a crowded tomogram are.

    Of the background, which is the last class, a half is noise alone, and a half shows random
    molecules, no two alike and most of them cut off by the box.

    Args:
        densities: one per class.
        preset: there are as many particles in all as it has of as many classes.
        snr: of the particles; of the background's molecules half to twice that.
        seed: of all that is random.
        ctf: as of ``jimjax benchmark``, for the particles alone.
    """
    import jax
    import numpy as np

    made = []
    for part, num in enumerate((preset.num_per_class, preset.num_fresh)):
        key = jax.random.fold_in(jax.random.key(seed), part)
        signal_key, order_key, noise_key = jax.random.split(key, 3)
        total = num * len(densities)
        num_own = max(1, round((1 - BACKGROUND) * num))
        own = _simulate(signal_key, densities, num_own, snr, ctf)
        num_background = total - len(own)
        background = _background(noise_key, num_background, snr)
        order = np.asarray(jax.random.permutation(order_key, total))
        made.append(_join(own, background, len(densities)).select(order))
    return made[0], made[1]


def label_voxels(particles: "Subtomograms", height: float | None) -> "np.ndarray":
    """Masks of dark particles by a mixture of each one's voxels, as a UMTL makes pseudo-labels.

    Args:
        particles: of which nothing but the volumes is looked at.
        height: share of a particle's height at which its mask ends; 0 keeps its central part
            whole, and None every part.

    Returns:
        ``(n, z, y, x)`` boolean.
    """
    from jimjax.config import UMTLSection
    from jimjax.data.subtomograms import normalize
    from jimjax.segment.pseudo_labels import corrected_labels, pseudo_labels

    volumes = normalize(particles.volumes)
    how = {"sigma": UMTLSection().smoothing, "sign": -1.0}
    labels = pseudo_labels(volumes, **how)
    if height is not None:
        labels = corrected_labels(volumes, labels, height=height, **how)
    return labels > 0.5


def _simulate(
    key: "jax.Array",
    densities: Sequence[Any],
    num: int,
    snr: float,
    ctf: bool,
    mask_threshold: float | None = None,
) -> "Subtomograms":
    from jimjax.data.simulate import CtfParameters, simulate

    return simulate(
        key,
        densities,
        num_per_class=num,
        snr=snr,
        voxel_size=VOXEL_SIZE,
        tilt_range=TILT_RANGE,
        max_shift=MAX_SHIFT,
        box=BOX,
        ctf=CtfParameters(defocus=20000.0, mtf=MTF) if ctf else None,
        mask_threshold=mask_threshold,
    )


def _background(key: "jax.Array", num: int, snr: float) -> "np.ndarray":
    """Volumes ``(num, z, y, x)``, normalised."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jimjax.data.subtomograms import normalize
    from jimjax.mesh import data_mesh
    from jimjax.ops import wedge
    from jimjax.train.molecules import MoleculeConfig, observe_molecules

    family = MoleculeConfig(max_shift=CLUTTER_SHIFT, snr_min=snr / 2, snr_max=2 * snr)
    noise_key, molecule_key = jax.random.split(key)
    mask = wedge.wedge_mask((BOX,) * 3, jnp.asarray(TILT_RANGE))
    noise = jax.random.normal(noise_key, (num - num // 2, *[BOX] * 3))
    empty = np.asarray(jax.lax.map(lambda volume: wedge.apply_mask(volume, mask), noise))
    ranges = jnp.tile(jnp.asarray(TILT_RANGE), (num // 2, 1))
    made = observe_molecules(molecule_key, ranges, family, box=BOX, sign=-1.0, mesh=data_mesh(1))
    return np.concatenate([normalize(empty), np.asarray(made.target)])


def _join(own: "Subtomograms", background: "np.ndarray", label: int) -> "Subtomograms":
    """Puts background behind particles, as a class of its own without poses."""
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms, normalize

    num = len(background)
    return Subtomograms(
        volumes=np.concatenate([normalize(own.volumes), background]),
        tilt_ranges=np.tile(np.float32(TILT_RANGE), (len(own) + num, 1)),
        voxel_size=own.voxel_size,
        names=(*own.names, *(f"background {row}" for row in range(num))),
        halves=np.concatenate([own.halves, np.arange(num) % 2 + 1]),
        labels=np.concatenate([own.labels, np.full(num, label)]),
    )


def _turn(density: "np.ndarray", group: str, path: Path) -> "np.ndarray":
    """Turns a density into the setting of its point group.

    Raises:
        InputError: if it does not have that symmetry.
    """
    import jax.numpy as jnp
    import numpy as np

    from jimjax.align.symmetry_axes import find_setting
    from jimjax.io.errors import InputError
    from jimjax.ops import resample

    rotation, similarity = find_setting(density, group)
    if similarity < LEAST_SIMILARITY:
        raise InputError(
            f"{path}: is not {group}: copies of it correlate by {similarity:.2f} with it at best"
        )
    if np.array_equal(rotation, np.eye(3)):
        return density
    turned = resample.rotate(jnp.asarray(density), jnp.asarray(rotation, jnp.float32), order=3)
    return np.asarray(turned)
