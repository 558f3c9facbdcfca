"""``jimjax benchmark alignment``: classes and poses, by methods that see the same particles."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jimjax.commands import benchmark_data
from jimjax.commands.alignment_methods import METHODS, Case
from jimjax.commands.benchmark_data import PRESETS
from jimjax.commands.benchmark_results import complete, read_results

if TYPE_CHECKING:
    import numpy as np

    from jimjax.commands.benchmark import Benchmark

FOLDER = "snr_{snr:g}"


def measure(benchmark: "Benchmark", densities: list[Any]) -> None:
    """Runs the methods whose results are not there yet, at every noise."""
    for snr in benchmark.snrs:
        folder = benchmark.out / FOLDER.format(snr=snr)
        complete(
            {method: folder / f"result_{method}.json" for method in benchmark.chosen},
            {"snr": snr, "noise": "ctf" if benchmark.ctf else "white"},
            partial(_prepare, benchmark, snr, densities, folder),
            _measure_one,
        )


def results(folder: Path) -> list[dict[str, Any]]:
    """What is there, by noise and method."""
    return read_results(folder, METHODS)


def _prepare(benchmark: "Benchmark", snr: float, densities: list[Any], folder: Path) -> Case:
    import numpy as np

    from jimjax.data.phantom import render

    preset, box = PRESETS[benchmark.preset], benchmark_data.BOX
    fitted, fresh = benchmark_data.simulate_particles(
        densities, preset, snr=snr, seed=benchmark.seed, ctf=benchmark.ctf
    )
    drawn = densities if benchmark.structures else [render(own, (box,) * 3) for own in densities]
    maps = -np.stack(drawn)
    groups = _groups(benchmark.symmetries, len(maps))
    max_shift = benchmark_data.MAX_SHIFT
    return Case(fitted, fresh, maps, groups, folder, max_shift, benchmark.seed, preset)


def _measure_one(method: str, case: Case) -> dict[str, Any]:
    started = time.monotonic()
    scores, details = METHODS[method](case)
    return {"seconds": round(time.monotonic() - started, 1), **details, **scores}


def _groups(symmetries: tuple[str, ...], num_classes: int) -> "list[np.ndarray]":
    import numpy as np

    from jimjax.ops import point_group

    return [np.asarray(point_group(name)) for name in symmetries or ["C1"] * num_classes]
