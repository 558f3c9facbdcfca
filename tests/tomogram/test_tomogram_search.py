"""The search of a tomogram: a slow twin, tiles, invariances, and whether it finds particles."""

import jax
import numpy as np
import pytest
import small_tomogram
from scipy import ndimage
from small_tomogram import BOX, DIAMETER, TILTS, angle, make_world, nearest

from jimjax.mesh import data_mesh
from jimjax.ops import resample, symmetry
from jimjax.tomogram import matched_filter, search
from jimjax.tomogram.picks import find_picks
from jimjax.tomogram.search import match_templates

CUTOFF = 0.3  # cycles per voxel
STEP = 30.0  # degrees
FEW = 6  # rotations where the poses do not matter
OPTIONS = {"diameter": DIAMETER, "tilt_range": TILTS, "cutoff": CUTOFF}


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def grid():
    return np.asarray(symmetry.rotation_grid(np.deg2rad(STEP)))


@pytest.fixture(scope="module")
def few_maps(world, grid):
    return match_templates(world.tomogram, world.templates, grid[:FEW], **OPTIONS)


@pytest.fixture(scope="module")
def maps(world, grid):
    return match_templates(world.tomogram, world.templates, grid, **OPTIONS)


def slow_score(world, template, rotation, place):
    """The formula of the docstring at one voxel (z, y, x)."""
    side = matched_filter.mask_side(DIAMETER)
    mask = matched_filter.soft_mask(side, DIAMETER).astype(float)
    scaled = (world.tomogram - world.tomogram.mean()) / world.tomogram.std()
    kernel = matched_filter.whitening_kernel(scaled, side, cutoff=CUTOFF, tilt_range=TILTS)
    fitted = matched_filter.fit_template(template, DIAMETER)
    turned = np.asarray(resample.rotate(fitted, rotation, order=3))
    response = np.fft.rfftn(np.fft.ifftshift(kernel))
    u = np.fft.irfftn(np.fft.rfftn(turned) * response, s=turned.shape, axes=(0, 1, 2))
    around = np.pad(scaled, side, mode="symmetric")
    # Two kernels wide: the middle of the result has seen no border of the cut.
    cut = tuple(slice(p, p + 2 * side) for p in np.array(place) + side - side)
    v = ndimage.correlate(around[cut].astype(float), kernel, mode="constant")
    v = v[tuple(slice(side // 2, side // 2 + side) for _ in range(3))]
    u, v = (array - np.sum(mask * array) / mask.sum() for array in (u, v))
    return np.sum(mask * u * v) / np.sqrt(np.sum(mask * u * u) * np.sum(mask * v * v))


@pytest.mark.parametrize("place", [(10, 20, 15), (0, 37, 3)])
def test_score_is_the_best_local_correlation(world, grid, few_maps, place):
    scores = [[slow_score(world, t, R, place) for R in grid[:FEW]] for t in world.templates]
    assert few_maps.scores[place] == pytest.approx(np.max(scores), abs=2e-4)
    best = few_maps.references[place], few_maps.rotations[place]
    assert best == np.unravel_index(np.argmax(scores), np.shape(scores))


def test_tiles_give_what_the_whole_gives(world, grid, few_maps, monkeypatch):
    shapes = []
    prepare = search._prepare
    monkeypatch.setattr(
        search, "_prepare", lambda *a, **k: shapes.append(k["shape"]) or prepare(*a, **k)
    )
    tiled = match_templates(
        world.tomogram, world.templates, grid[:FEW], max_bytes=2.5 * 2**20, **OPTIONS
    )
    assert len(shapes) > 3
    assert len(set(shapes)) == 1  # one compilation
    np.testing.assert_allclose(tiled.scores, few_maps.scores, atol=2e-5)
    assert np.mean(tiled.rotations == few_maps.rotations) > 0.999
    assert np.mean(tiled.references == few_maps.references) > 0.999


def test_scale_and_offset_of_the_tomogram_do_not_matter(world, grid, few_maps):
    other = match_templates(40 * world.tomogram + 1000, world.templates, grid[:FEW], **OPTIONS)
    # The offset costs float32 three digits before anything is computed.
    np.testing.assert_allclose(other.scores, few_maps.scores, atol=5e-4)


def test_contrast_matters(world, grid, few_maps):
    flipped = match_templates(-world.tomogram, world.templates, grid[:FEW], **OPTIONS)
    assert np.corrcoef(flipped.scores.ravel(), few_maps.scores.ravel())[0, 1] < 0.5


def test_a_tile_takes_no_more_memory_than_allowed(monkeypatch):
    shape, mesh = (64, 64, 64), data_mesh(1)
    side = matched_filter.mask_side(DIAMETER)
    core = (64 - side + 1,) * 3
    cube = np.ones((side,) * 3, np.float32)
    filters = search._Filter(cube, np.fft.rfftn(cube).astype(np.complex64), cube)
    raw = np.ones((1, *(n + side - 1 for n in shape)), np.float32)
    sides = {"core": core, "shape": shape, "mesh": mesh}
    prepare = search._prepare.lower(raw, filters, **sides).compile()
    tile = jax.eval_shape(lambda: search._prepare(raw, filters, **sides))
    best = search._nothing(core, mesh)
    (chunk, *_) = search._chunks([cube], np.tile(np.eye(3), (8, 1, 1)))
    improve = search._improve.lower(best, tile, filters, chunk, **sides).compile()
    for program in (prepare, improve):
        memory = program.memory_analysis()
        used = (
            memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        )
        assert used < search.BYTES_PER_VOXEL * np.prod(shape)


def test_particles_are_found_with_class_place_and_pose(world, maps, grid):
    check_found(world, maps, grid)


def test_particles_of_another_seed_are_found_by_their_own_template(grid):
    world = make_world(3, labels=(0, 0, 0))
    maps = match_templates(world.tomogram, world.templates[:1], grid, **OPTIONS)
    check_found(world, maps, grid)


def check_found(world, maps, grid):
    num = len(world.labels)
    picks = find_picks(maps.scores, threshold=-1, min_distance=DIAMETER, margin=5, max_picks=num)
    rows, distances = nearest(picks.positions, world.positions)
    assert sorted(rows) == list(range(num))
    assert distances.max() < 1
    places = tuple(picks.voxels.T)
    np.testing.assert_array_equal(maps.references[places], world.labels[rows])
    found = grid[maps.rotations[places]]
    angles = [angle(a, b) for a, b in zip(found, world.rotations[rows], strict=True)]
    # The farthest rotation is 0.96 steps from the grid; noise may prefer the next one.
    assert max(angles) < 1.3 * STEP
    assert np.median(angles) < 0.8 * STEP


def test_the_wedge_is_in_the_comparison(grid):
    """A template that lacks what the tomogram lacks fits it better."""
    tilts = (-40.0, 40.0)
    world = make_world(1, labels=(0, 0), noise=0.05, tilts=tilts)
    at = tuple(np.rint(world.positions[:, ::-1]).astype(int).T)
    options = {"diameter": DIAMETER, "cutoff": CUTOFF}
    rotations = np.concatenate([world.rotations, grid[:4]])
    given, ignored = (
        match_templates(
            world.tomogram, world.templates[:1], rotations, tilt_range=limits, **options
        )
        for limits in (tilts, (-90.0, 90.0))
    )
    assert np.all(given.scores[at] > ignored.scores[at] + 0.02)
    np.testing.assert_array_equal(given.rotations[at], [0, 1])
    assert given.scores[at].min() > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tomogram": np.ones((8, 40, 40))}, r"\(z, y, x\) with 14 voxels or more"),
        ({"tomogram": np.ones((20, 40, 40))}, "constant or not finite"),
        ({"templates": []}, "one template or more"),
        ({"templates": [np.ones((8, 8, 9))]}, "a template must be a cube"),
        ({"rotations": np.eye(3)}, r"rotations must be \(num, 3, 3\)"),
        ({"cutoff": 0.6}, "cutoff must be in"),
        ({"max_bytes": 1000}, "the memory must be"),
    ],
)
def test_mistakes_are_errors(world, changes, message):
    arguments = {
        "tomogram": world.tomogram,
        "templates": world.templates,
        "rotations": np.eye(3)[None],
        **OPTIONS,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        match_templates(**arguments)


def test_the_small_tomogram_has_its_particles_where_it_says():
    world = make_world(2, labels=(0,), noise=0.0, tilts=(-90.0, 90.0))
    middle = np.array(small_tomogram.BOX // 2)
    assert 2 * middle == BOX
    weights = np.clip(-world.tomogram, 0, None)
    center = np.array(ndimage.center_of_mass(weights))[::-1]
    np.testing.assert_allclose(center, world.positions[0], atol=0.1)
