"""Makes the weights that come with jimjax: ``python -m benchmarks.weights FILE.safetensors``.

Jim-Net, small preset, on random molecules alone; nothing is downloaded and no particle is read.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import optax

from jimjax.config import NetworkSection, PretrainSection, RunConfig
from jimjax.mesh import data_mesh, replicate
from jimjax.models.weights import Description, Weights, save_weights
from jimjax.train import jimnet, loop
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.state import Optimizer, TrainState, adam, initial_state, network_of

BOX = 32
WARM_UP, HOLD, DECAY = 100, 1700, 400  # steps
RATE, FINAL_SHARE = 2e-3, 0.01
NUM_RANGES = 512
TILTS = 45.0, 65.0  # degrees, limits of the highest tilt, and of the lowest with a minus
CONFIG = RunConfig(
    network=NetworkSection(num_classes=5),
    pretrain=PretrainSection(steps=WARM_UP + HOLD + DECAY, batch_size=16, snr_max=2.0),
)


def draw_tilt_ranges() -> np.ndarray:
    """Half of them -60 to 60 degrees, half random: ``(NUM_RANGES, 2)``."""
    generator = np.random.default_rng(0)
    ranges = generator.uniform(*TILTS, (NUM_RANGES, 2)) * np.array([-1, 1])
    ranges[::2] = -60, 60
    return ranges.astype(np.float32)


def build_optimizer() -> Optimizer:
    """Adam that warms up, goes on evenly and slows down."""
    pieces = [
        optax.linear_schedule(0.0, RATE, WARM_UP),
        optax.constant_schedule(RATE),
        optax.cosine_decay_schedule(RATE, DECAY, FINAL_SHARE),
    ]
    return adam(optax.join_schedules(pieces, [WARM_UP, WARM_UP + HOLD]))


def train(folder: Path) -> Weights:
    """Trains in a folder, or goes on with what it holds."""
    mesh, key = data_mesh(), jax.random.split(jax.random.key(CONFIG.seed))[0]
    network, optimizer = jimnet.build_network(CONFIG, BOX), build_optimizer()
    state, memory = initial_state(network, optimizer), {"none": np.zeros(1)}
    state = replicate(state, mesh)
    stages = [jimnet.molecule_stage(CONFIG, draw_tilt_ranges(), BOX, mesh)]
    folder.mkdir(parents=True, exist_ok=True)
    with open_checkpoints(folder / "checkpoints") as checkpoints:
        if checkpoints.latest_step is not None:
            saved = checkpoints.restore({"state": state, "memory": memory})
            state = TrainState(*saved["state"])
        state, _ = loop.train(
            network,
            state,
            memory,
            stages,
            key=key,
            optimizer=optimizer,
            mesh=mesh,
            checkpoints=checkpoints,
            log=loop.Log(folder / "metrics.jsonl"),
        )
    description = Description(jimnet.network_config(CONFIG, BOX), CONFIG.data.contrast)
    return Weights(description, network_of(network, state))


def main() -> None:
    """Trains and writes the file; checkpoints lie beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    save_weights(out, train(out.with_suffix(".run")))


if __name__ == "__main__":
    main()
