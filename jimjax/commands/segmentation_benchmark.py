"""``jimjax benchmark segmentation`` and ``ablation``: from simulated particles to other ones."""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jimjax.commands import benchmark_data
from jimjax.commands.benchmark_results import complete, read_results, seed_paths

if TYPE_CHECKING:
    import numpy as np

    from jimjax.commands.benchmark import Benchmark
    from jimjax.data.simulate import CtfParameters
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.models.weights import Weights
    from jimjax.segment.config import SegmentConfig

SOURCE_SNRS = (0.03, 0.05)  # as Vox-UDA's source
SNRS = (0.04,)  # of the target
# The target's microscope; the source has tilts of -60 to 60 degrees, white noise and no CTF.
TARGET_TILT_RANGE = (-50.0, 65.0)
TARGET_NOISE_CORNER = 0.12  # cycles per voxel
MASK_THRESHOLD = 0.5  # of the highest density: about the volume of the molecule
FOREGROUND = 0.5  # probability above which a voxel is found to be the particle
MAX_SHIFT = 4.0  # voxels: large particles stay in the box


class Preset(NamedTuple):
    """Particles of each class.

    Attributes:
        num_source: at each of the source's noises.
        num_target: that methods see, without masks.
        num_fresh: of the target's kind, to score on.
    """

    num_source: int
    num_target: int
    num_fresh: int


class Domains(NamedTuple):
    """Particles of one seed.

    Attributes:
        source: with masks.
        target: with the masks that only "supervised" sees.
        fresh: of the target's kind, with masks.
    """

    source: "Subtomograms"
    target: "Subtomograms"
    fresh: "Subtomograms"


PRESETS = {"small": Preset(50, 60, 40), "paper": Preset(500, 344, 100)}
VOX_UDA = "vox-uda"
Changes = Mapping[str, Any]  # of a SegmentConfig, by field

METHODS: dict[str, Changes] = {
    "source-only": {"method": "source-only"},
    "supervised": {"method": "supervised"},
    "dann": {"method": "dann"},
    "pdam": {"method": "pdam"},
    "asc": {"method": "asc"},
    "le-uda": {"method": "le-uda"},
    "vox-uda-ngm": {"denoiser": "ngm"},
    "vox-uda-bilateral": {"denoiser": "bilateral"},
    VOX_UDA: {},
}
ABLATIONS: dict[str, Changes] = {
    VOX_UDA: {},
    "dann": {"method": "dann"},
    "match_spectrum=False": {"match_spectrum": False},
    "match_spectrum=True": {"match_spectrum": True},
    "adversarial=0": {"adversarial": 0.0},
    "noise=none": {"noise": "none"},
    "denoiser=none": {"denoiser": "none"},
    "noise=poisson": {"noise": "poisson"},
    "noise=speckle": {"noise": "speckle"},
    "variance_order=mean-of-variances": {"variance_order": "mean-of-variances"},
    "num_sampled=5": {"num_sampled": 5},
    "num_sampled=15": {"num_sampled": 15},
    "num_sampled=20": {"num_sampled": 20},
    "kept=0.084": {"kept": 0.084},
    "kept=0.178": {"kept": 0.178},
    "kept=0.422": {"kept": 0.422},
    "consistency=0.1,0.1,0.4,0.4": {"consistency": (0.1, 0.1, 0.4, 0.4)},
    "consistency=0.3,0.3,0.2,0.2": {"consistency": (0.3, 0.3, 0.2, 0.2)},
    "consistency=0.4,0.4,0.1,0.1": {"consistency": (0.4, 0.4, 0.1, 0.1)},
    "sigma_space=100": {"sigma_space": 100.0},
    "sigma_space=140": {"sigma_space": 140.0},
    "sigma_space=160": {"sigma_space": 160.0},
    "sigma_range=0.8": {"sigma_range": 0.8},
    "sigma_range=1.0": {"sigma_range": 1.0},
    "sigma_range=1.4": {"sigma_range": 1.4},
}
# Mixtures of each particle's voxels, and where what they find ends; see ``label_voxels``.
UNTAUGHT: dict[str, float | None] = {"gmm": None, "gmm-corrected": 0.5}
TASKS = {"segmentation": (*METHODS, *UNTAUGHT), "ablation": tuple(ABLATIONS)}


def default_rows(task: str, preset: str) -> tuple[str, ...]:
    """Rows of a task but those that change nothing of the preset."""
    base = _config(preset, {}, 0)
    changes = METHODS | ABLATIONS
    return tuple(
        name
        for name in TASKS[task]
        if name in (VOX_UDA, *UNTAUGHT) or dataclasses.replace(base, **changes[name]) != base
    )


def measure(benchmark: "Benchmark", densities: list[Any]) -> None:
    """Runs what is not there yet, one seed of everything first.

    Args:
        benchmark: what to run.
        densities: of the target's structures.
    """
    # Other phantoms than the target's, where there are no files.
    sources = benchmark_data.read_densities(benchmark.source_structures, (), benchmark.seed + 1)
    size = PRESETS[benchmark.preset]
    for seed in range(benchmark.seed, benchmark.seed + benchmark.num_seeds):
        for snr in benchmark.snrs:
            complete(
                seed_paths(benchmark.out / f"snr_{snr:g}", benchmark.chosen, seed),
                {"snr": snr, "seed": seed},
                partial(simulate_domains, sources, densities, size, snr=snr, seed=seed),
                partial(measure_one, preset=benchmark.preset, epochs=benchmark.epochs, seed=seed),
            )


def results(folder: Path) -> list[dict[str, Any]]:
    """What is there, by noise, method and seed."""
    return read_results(folder, [*METHODS, *UNTAUGHT, *ABLATIONS])


def simulate_domains(
    sources: list[Any], targets: list[Any], preset: Preset, *, snr: float, seed: int
) -> Domains:
    """Particles of structures that are known, and of others under another microscope.

    Args:
        sources: densities.
        targets: densities of other structures.
        preset: how many.
        snr: of the target.
        seed: of all that is random.
    """
    import jax

    from jimjax.data.simulate import simulate
    from jimjax.data.subtomograms import concatenate

    *source_keys, target_key, fresh_key = jax.random.split(
        jax.random.key(seed), len(SOURCE_SNRS) + 2
    )
    kept: dict[str, Any] = {
        "voxel_size": benchmark_data.VOXEL_SIZE,
        "max_shift": MAX_SHIFT,
        "box": benchmark_data.BOX,
        "mask_threshold": MASK_THRESHOLD,
    }
    known = [
        simulate(key, sources, num_per_class=preset.num_source, snr=own, **kept)
        for key, own in zip(source_keys, SOURCE_SNRS, strict=True)
    ]
    target, fresh = (
        simulate(
            key,
            targets,
            num_per_class=num,
            snr=snr,
            tilt_range=TARGET_TILT_RANGE,
            ctf=_target_ctf(),
            noise_corner=TARGET_NOISE_CORNER,
            **kept,
        )
        for key, num in ((target_key, preset.num_target), (fresh_key, preset.num_fresh))
    )
    return Domains(concatenate(known), target, fresh)


def _target_ctf() -> "CtfParameters":
    from jimjax.data.simulate import CtfParameters

    return CtfParameters(defocus=(25000.0, 45000.0), amplitude_contrast=0.1, mtf=0.5)


def _config(preset: str, changes: Changes, seed: int, epochs: int | None = None) -> "SegmentConfig":
    from jimjax.segment import config as presets
    from jimjax.segment.config import SegmentConfig

    if preset == "small":
        config = presets.small()
    else:
        config = SegmentConfig() if epochs is None else presets.short(epochs)
    return dataclasses.replace(config, **changes, seed=seed)


def measure_one(
    name: str, domains: Domains, *, preset: str, seed: int, epochs: int | None = None
) -> dict[str, Any]:
    """Scores a row on fresh particles; compilation is in the seconds.

    Args:
        name: of ``METHODS``, ``UNTAUGHT`` or ``ABLATIONS``; those of one name are the same.
        domains: particles.
        preset: "small" or "paper".
        seed: of the training.
        epochs: of the paper preset, in place of the published ones.
    """
    import jax

    from jimjax.evaluate.segmentation import score_segmentation

    fresh = domains.fresh
    started = time.monotonic()
    if name in UNTAUGHT:
        found = benchmark_data.label_voxels(fresh, UNTAUGHT[name])
        seconds = _since(started)
    else:
        config = _config(preset, (METHODS | ABLATIONS)[name], seed, epochs)
        weights = _train(config, domains)
        seconds = _since(started)
        found = _segment(weights, fresh)
    scores = score_segmentation(found, fresh.masks, fresh.labels)
    return {
        "scored_on": "fresh",
        **{name.replace("mean_iou", "miou").replace("mean_", ""): v for name, v in scores.items()},
        "found_share": float(found.mean()),
        "true_share": float(fresh.masks.mean()),
        "seconds": seconds,
        "device": jax.devices()[0].device_kind,
    }


def _train(config: "SegmentConfig", domains: Domains) -> "Weights":
    from jimjax.commands.progress import open_progress
    from jimjax.segment.training import train_segmenter

    seen = dataclasses.replace(domains.target, labels=None, rotations=None, shifts=None)
    if config.method != "supervised":
        seen = dataclasses.replace(seen, masks=None)
    with open_progress() as progress:
        return train_segmenter(config, domains.source, seen, progress=progress)


def _segment(weights: "Weights", fresh: "Subtomograms") -> "np.ndarray":
    from jimjax.segment.segmenter import segment_particles

    return segment_particles(weights, fresh) > FOREGROUND


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
