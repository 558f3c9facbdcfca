"""Step times on many chips, on paper: measured steps of one, and what the others add.

    python -m benchmarks.scaling

Prints the table of docs/scaling.md, which says what is assumed. Nothing here is measured but the
steps of a single GPU, read from results/train_h100.json.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.train import CASES
from jimjax.models import functional, weights
from jimjax.train.costs import PEAKS

MEASURED = Path(__file__).parent / "results" / "train_h100.json"
NUM_CHIPS = (8, 64, 512)
ROUNDS_PER_NORM = 2  # all-reduces of statistics: on the way there and back


class Chips(NamedTuple):
    """What chips of a kind have between them.

    Attributes:
        near_bytes: a second and direction, to those of the same node.
        far_bytes: a second and direction, beyond the node.
        num_near: chips of a node.
        latency: seconds of a small all-reduce within a node; one more for each doubling beyond.
    """

    near_bytes: float
    far_bytes: float
    num_near: int
    latency: float

    def all_reduce(self, num_bytes: float, num_chips: int) -> float:
        """Seconds: scattered and collected within nodes, rings of equal shares beyond."""
        near = min(num_chips, self.num_near)
        nodes = num_chips // near
        seconds = 2 * (near - 1) / near * num_bytes / self.near_bytes
        if nodes > 1:
            seconds += 2 * (nodes - 1) / nodes * num_bytes / near / self.far_bytes
        return seconds + self.wait(num_chips)

    def wait(self, num_chips: int) -> float:
        """Seconds of an all-reduce of next to nothing."""
        return self.latency * (1 + math.log2(max(1, num_chips / self.num_near)))


# Vendors' figures: NVLink 900 GB/s and 400 Gb/s of network for a GPU; 4800 Gb/s for a chip whose
# pod is one torus. Latencies are guesses.
KINDS = {
    "H100": Chips(450e9, 50e9, 8, 20e-6),
    "TPU v5": Chips(300e9, 300e9, 512, 10e-6),
}


def rows() -> list[tuple[str, ...]]:
    """The table: a row for each network, precision and kind of chip."""
    record = json.loads(MEASURED.read_text(encoding="utf-8"))
    measured = {
        (row["op"], row["precision"]): row["seconds"]
        for row in record["results"]
        if row["mode"] == "training"
    }
    found = []
    for (name, precision), seconds in measured.items():
        network = weights.build(CASES[name].config, jax.random.key(0))
        num_bytes = 4 * functional.num_parameters(network)
        num_norms = sum("mean" in each for each in functional.name_arrays(network.stats))
        for kind, chips in KINDS.items():
            own = seconds * PEAKS["H100"] / PEAKS[kind]
            shares = []
            for num in NUM_CHIPS:
                waits = ROUNDS_PER_NORM * num_norms * chips.wait(num)
                most = own + waits + chips.all_reduce(num_bytes, num)
                least = max(own + waits, waits + chips.all_reduce(num_bytes, num))
                shares.append(f"{most * 1e3:.1f} ({own / most:.0%} to {own / least:.0%})")
            step = f"{own * 1e3:.1f}"
            found.append(
                (name, precision, kind, f"{num_bytes / 1e6:.0f}", str(num_norms), step, *shares)
            )
    return found


def main() -> None:
    """Prints the table."""
    heads = "network", "precision", "chip", "MB", "norms", "1 chip", *map(str, NUM_CHIPS)
    for row in (heads, ("---",) * len(heads), *rows()):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
