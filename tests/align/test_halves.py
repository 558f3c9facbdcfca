"""Half sets that never see each other: noise must not agree with itself."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.align import halves
from jimjax.align.fit import fit
from jimjax.align.fit_data import Options
from jimjax.align.halves import fit_halves
from jimjax.align.plans import Nearby, Start, Sweep
from jimjax.average import average_classes
from jimjax.data.phantom import demo_phantoms
from jimjax.data.simulate import simulate
from jimjax.ops.rotation import Pose

BOX, NUM, FIRST_LIMIT = 16, 500, 1.5
PLAN = Sweep(FIRST_LIMIT, 72, 0.1, 0.1, 3, 2.0), Sweep(3.0, 144, 0.1, 0.1, 3), Nearby(4.0, 3)


@pytest.mark.slow
def test_half_maps_of_noise_agree_only_where_both_began():
    particles = simulate(
        jax.random.key(0),
        demo_phantoms(1, shape=(BOX,) * 3),
        num_per_class=NUM,
        snr=1e-6,
        voxel_size=24.0,
        box=BOX,
        max_shift=1.0,
    )
    particles = dataclasses.replace(particles, halves=1 + np.arange(NUM) % 2)
    options = Options(max_shift=1.0)
    joint = fit(particles, options, plan=PLAN)
    start = Start(joint.labels, joint.rotations, joint.shifts)
    curves = []
    for found in (start, fit_halves(particles, options, start, plan=PLAN)):
        posed = dataclasses.replace(
            particles, labels=found.labels, rotations=found.rotations, shifts=found.shifts
        )
        curves.append(np.asarray(average_classes(posed)[0].fsc))
    beyond = slice(int(FIRST_LIMIT / (2 / 3)) + 2, 7)  # shells, cycles per box
    joint_curve, independent = (np.mean(curve[beyond]) for curve in curves)
    assert joint_curve > 0.3  # poses found together make noise agree
    assert independent < 0.143


def test_particles_stay_in_their_classes():
    """Also in those that they fit worse: half maps of a class are of its own particles."""
    particles = simulate(
        jax.random.key(1),
        demo_phantoms(2, shape=(BOX,) * 3),
        num_per_class=10,
        snr=1.0,
        voxel_size=24.0,
        box=BOX,
        max_shift=1.0,
    )
    particles = dataclasses.replace(particles, halves=1 + np.arange(20) % 2)
    labels = np.random.default_rng(0).integers(0, 2, 20)
    start = Start(labels, particles.rotations, particles.shifts)
    plan = Sweep(FIRST_LIMIT, 72, 0.1, 0.1, 2), Nearby(2.5, 1)
    found = fit_halves(particles, Options(2, max_shift=1.0), start, plan=plan)
    np.testing.assert_array_equal(found.labels, labels)
    assert np.any(found.rotations != start.rotations)
    with pytest.raises(ValueError, match="needs a start"):
        fit(particles, Options(2, keep_classes=True))


def test_a_class_that_settled_in_another_frame_is_moved_back():
    generator = np.random.default_rng(0)
    begun = Pose(Rotation.random(40, random_state=1).as_matrix(), generator.normal(size=(40, 3)))
    turn, move = Rotation.from_rotvec([0, 2.9, 0.4]).as_matrix(), np.array([1.0, -2.0, 0.5])
    improved = (
        begun.rotation @ Rotation.from_rotvec(0.05 * generator.normal(size=(40, 3))).as_matrix()
    )
    improved[:15] = Rotation.random(15, random_state=2).as_matrix()  # lost
    ended = Pose(improved @ turn, begun.shift + improved @ move)
    found = halves._move_back(ended, begun)
    angles = Rotation.from_matrix(np.swapaxes(found.rotation, 1, 2) @ improved).magnitude()
    assert np.all(angles < 0.05)
    np.testing.assert_allclose(found.shift[15:], begun.shift[15:], atol=0.4)
