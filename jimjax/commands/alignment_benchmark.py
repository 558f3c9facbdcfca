"""``jimjax benchmark alignment``: classes and poses, by methods that see the same particles."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jimjax.commands import benchmark_data
from jimjax.commands.alignment_methods import METHODS, Case
from jimjax.commands.benchmark_data import PRESETS

if TYPE_CHECKING:
    import numpy as np

    from jimjax.commands.benchmark import Benchmark

FOLDER = "snr_{snr:g}"


def measure(benchmark: "Benchmark", densities: list[Any]) -> None:
    """Runs the methods whose results are not there yet, at every noise."""
    for snr in benchmark.snrs:
        _measure_at(benchmark, snr, densities)


def results(folder: Path) -> list[dict[str, Any]]:
    """What is there, by noise and method."""
    from jimjax.commands.files import read_json

    found = [read_json(path) for path in folder.glob("snr_*/result_*.json")]
    order = {method: place for place, method in enumerate(METHODS)}
    return sorted(found, key=lambda result: (-result["snr"], order[result["method"]]))


def _measure_at(benchmark: "Benchmark", snr: float, densities: list[Any]) -> None:
    import numpy as np

    from jimjax.commands import files
    from jimjax.commands.progress import say
    from jimjax.data.phantom import render

    folder = benchmark.out / FOLDER.format(snr=snr)
    paths = {method: folder / f"result_{method}.json" for method in benchmark.chosen}
    missing = [method for method, path in paths.items() if not path.exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    preset, box = PRESETS[benchmark.preset], benchmark_data.BOX
    fitted, fresh = benchmark_data.simulate_particles(
        densities, preset, snr=snr, seed=benchmark.seed, ctf=benchmark.ctf
    )
    drawn = densities if benchmark.structures else [render(own, (box,) * 3) for own in densities]
    maps = -np.stack(drawn)
    groups = _groups(benchmark.symmetries, len(maps))
    max_shift = benchmark_data.MAX_SHIFT
    case = Case(fitted, fresh, maps, groups, folder, max_shift, benchmark.seed, preset)
    for method in missing:
        say(f"{method} at SNR {snr:g}")
        started = time.monotonic()
        scores, details = METHODS[method](case)
        result = {
            "method": method,
            "snr": snr,
            "noise": "ctf" if benchmark.ctf else "white",
            "seconds": round(time.monotonic() - started, 1),
            **details,
            **scores,
        }
        files.write_json(paths[method], result)


def _groups(symmetries: tuple[str, ...], num_classes: int) -> "list[np.ndarray]":
    import numpy as np

    from jimjax.ops import point_group

    return [np.asarray(point_group(name)) for name in symmetries or ["C1"] * num_classes]
