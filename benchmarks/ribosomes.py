"""Real particles: import, average at the recorded poses, align to the reference, score.

    python benchmarks/ribosomes.py ribosomes.npz OUT [--steps 1000]

The .npz holds subtomograms, poses, missing-wedge masks and a reference, as ``jimjax import``
takes them. Nothing that aligns ever sees a recorded pose: neither the network, which is
pre-trained on random molecules alone, nor the search, nor the em.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from jimjax.align import inference
from jimjax.align.fit import fit
from jimjax.align.fit_data import Options
from jimjax.average import average_class
from jimjax.config import RunConfig
from jimjax.data.npz_import import import_npz
from jimjax.data.subtomograms import load, normalize
from jimjax.evaluate import evaluate
from jimjax.evaluate.pose import rotation_error_degrees
from jimjax.io import mrc
from jimjax.ops import fourier
from jimjax.ops.rotation import Pose
from jimjax.train.run import train_run

LARGEST = 250.0  # angstrom; longer waves show a blob, turned or not
BANDS = (40.0, 60.0, 80.0)  # angstrom; low-passes at which the average is compared
PARTICLE_RADIUS = 144.0  # angstrom; nothing outside is compared


def main() -> None:
    """Runs it and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1000, help="pre-training steps; 0: no network")
    parser.add_argument("--proposals", type=int, default=16, help="turns of the reference")
    options = parser.parse_args()
    import_npz(options.npz, options.out)
    truth = load(options.out / "particles.star", with_poses=True)
    particles = load(options.out / "particles.star")
    reference = mrc.read_volume(options.out / "reference.mrc").data

    started = time.monotonic()
    found = fit(particles, Options(), references=reference[None])
    seconds = round(time.monotonic() - started, 1)
    alone = fit(particles, Options())
    shuffled = np.random.default_rng(0).permutation(len(truth))
    recorded = Pose(truth.rotations, truth.shifts)
    unturned = np.tile(np.eye(3, dtype=np.float32), (len(truth), 1, 1))
    poses = {
        "recorded": recorded,
        "search": Pose(found.rotations, found.shifts),
        "shuffled": Pose(truth.rotations[shuffled], truth.shifts),
        "none": Pose(unturned, truth.shifts),
    }
    result = {
        "average_correlation": {
            name: compare_average(each, truth, reference) for name, each in poses.items()
        },
        "search": {"seconds": seconds, **score(found, recorded)},
        "em_without_reference": score_pairs(alone, truth),
    }
    if options.steps:
        result["network"] = align_by_network(
            reference, particles, recorded, options.out / "run", options
        )
    print(json.dumps(result, indent=2))


def compare_average(poses: Pose, truth, reference: np.ndarray) -> dict[str, float]:
    """Correlation of the average at given poses with the reference, in bands."""
    averaged = average_class(
        truth.volumes,
        truth.tilt_ranges,
        poses,
        truth.halves,
        voxel_size=truth.voxel_size,
    )
    grid = np.indices(reference.shape) - reference.shape[0] // 2
    inside = np.linalg.norm(grid, axis=0) * truth.voxel_size < PARTICLE_RADIUS
    scores = {}
    for shortest in BANDS:
        low, high = truth.voxel_size / LARGEST, truth.voxel_size / shortest
        pair = [
            np.asarray(fourier.bandpass(volume, low=low, high=high))[inside]
            for volume in (averaged.volume, reference)
        ]
        name = f"{LARGEST:g} to {shortest:g} A"
        scores[name] = round(float(np.corrcoef(*pair)[0, 1]), 3)
    return scores


def score(found, recorded: Pose) -> dict[str, float]:
    """Errors of poses against the recorded ones, in the reference's frame."""
    distance = np.linalg.norm(found.rotations - recorded.rotation, axis=(1, 2))
    angles = rotation_error_degrees(distance)
    shifts = np.linalg.norm(found.shifts - recorded.shift, axis=1)
    return {
        "median_degrees": round(float(np.median(angles)), 1),
        "share_below_10_degrees": round(float(np.mean(angles < 10)), 2),
        "share_below_20_degrees": round(float(np.mean(angles < 20)), 2),
        "median_shift_voxels": round(float(np.median(shifts)), 2),
    }


def score_pairs(found, truth) -> dict[str, float]:
    """Errors of poses in an unknown frame."""
    labels = np.zeros(len(truth), int)
    scores = evaluate(
        labels, found.rotations, found.shifts, labels, truth.rotations, truth.shifts
    )  # fmt: skip
    names = ("rotation_error_median_degrees", "rotation_share_below_20_degrees")
    return {name: round(scores[name], 2) for name in names}


def align_by_network(reference, particles, recorded: Pose, folder: Path, options) -> dict:
    """Trains on random molecules, then poses all particles against the reference."""
    config = RunConfig()
    config = dataclasses.replace(
        config,
        network=dataclasses.replace(config.network, num_classes=1),
        data=dataclasses.replace(config.data, contrast="light"),
        pretrain=dataclasses.replace(config.pretrain, steps=options.steps),
        joint=dataclasses.replace(config.joint, epochs=0),
    )
    run = train_run(config, particles, folder)
    volumes = normalize(particles.volumes)
    reference = normalize(reference[None].astype(np.float32))
    described = inference.describe(run.network, volumes, batch_size=len(volumes))
    _, found = inference.align_to_all(
        run.network,
        reference,
        volumes,
        described.codes,
        particles.tilt_ranges,
        num_proposals=options.proposals,
        batch_size=len(volumes),
        cutoff=run.config.joint.cutoff,
    ).best()
    repeated = np.repeat(reference, len(volumes), axis=0)
    refined = inference.refine(
        run.network,
        repeated,
        volumes,
        particles.tilt_ranges,
        found,
        num_steps=run.config.predict.num_refinements,
        batch_size=len(volumes),
        cutoff=run.config.joint.cutoff,
    )
    return {"coarse": score(found, recorded), "fine": score(refined, recorded)}


if __name__ == "__main__":
    main()
