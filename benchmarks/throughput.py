"""How many particles of 32 voxels a second are described for clustering.

    python -m benchmarks.throughput --json benchmarks/results/throughput.json

``particles_per_second`` is of a compiled call on particles that are on the device already;
``from_host`` of ``jimjax.cluster.features.describe``, which takes them from memory and brings
what it finds back. Medians of wall time, ours alone; ``benchmarks.train`` has PyTorch beside it.
"""

import argparse
import importlib.metadata
import json
import platform
from pathlib import Path

import jax
import numpy as np

from benchmarks import measure
from jimjax.cluster import features
from jimjax.models import functional, jimnet, weights, yopo
from jimjax.models.compute import Compute
from jimjax.models.functional import Network
from jimjax.train.costs import peak_flops
from jimjax.train.program import compile_program

BOX, NUM_CLASSES, ROUNDS = 32, 5, 5
CONFIGS = {
    "jimnet small": jimnet.small(BOX, NUM_CLASSES),
    "yopo small": yopo.small(BOX, NUM_CLASSES),
    "jimnet paper": jimnet.paper(BOX, NUM_CLASSES),
    "yopo paper": yopo.paper(BOX, NUM_CLASSES),
}


@jax.jit
def _ask(network: Network, volumes: jax.Array) -> jax.Array:
    return functional.describe(network, volumes, train=False)[0].features


def run(name: str, precision: str, batch: int, num: int) -> dict[str, object]:
    """Measures a network."""
    network = weights.build(CONFIGS[name], jax.random.key(0), Compute(precision))
    volumes = np.random.default_rng(0).normal(size=(num, *(BOX,) * 3)).astype(np.float32)
    part = jax.device_put(volumes[:batch])
    program = compile_program(_ask, network, part)
    flops = program.flops / batch
    device, host = measure.interleaved_medians(
        [
            lambda: jax.block_until_ready(
                [program.run(network, part) for _ in range(num // batch)]
            ),
            lambda: features.describe(network, volumes, batch_size=batch),
        ],
        rounds=ROUNDS,
        clock=measure.wall_clock,
    )
    rate, peak = num // batch * batch / device, peak_flops()
    return {
        "network": name,
        "precision": precision,
        "batch": batch,
        "particles_per_second": rate,
        "from_host": num / host,
        "gflops_per_particle": flops / 1e9,
        "flop_utilisation": rate * flops / peak if peak else None,
    }


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=256, help="particles at a time")
    parser.add_argument("--num", type=int, default=4096, help="particles")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    record = {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "versions": {"jax": importlib.metadata.version("jax")},
        "results": [],
    }
    for name in options.network:
        for precision in options.precision:
            record["results"].append(run(name, precision, options.batch, options.num))
            print(json.dumps(record["results"][-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
