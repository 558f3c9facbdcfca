"""Makes the weights that come with jimjax: ``python -m benchmarks.weights NETWORK FILE``.

NETWORK is jimnet, gumnet, yopo, protonet or deepfinder, of the small preset. All learn from random
molecules alone; nothing is downloaded and no particle is read. An interrupted training goes on
where it was.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from jimjax.config import PretrainSection, RunConfig
from jimjax.fewshot import pretraining as protonet
from jimjax.mesh import data_mesh, replicate
from jimjax.models.functional import Network
from jimjax.models.weights import Description, Weights, save_weights
from jimjax.train import deepfinder, yopo
from jimjax.train.loop import Stage
from jimjax.train.recipes import RECIPES
from jimjax.train.resume import train_in_folder
from jimjax.train.state import Optimizer, adam, initial_state, network_of

BOX = 32
WARM_UP = 100  # steps
RATE, FINAL_SHARE = 2e-3, 0.01
NUM_RANGES = 512
TILTS = 45.0, 65.0  # degrees, limits of the highest tilt, and of the lowest with a minus


class Round(NamedTuple):
    """A part of the training, with a learning rate that rises and falls.

    Attributes:
        pretrain: steps, batch and family of molecules.
        decay: of the steps, the last over which the learning rate falls.
        rate: the highest learning rate.
    """

    pretrain: PretrainSection
    decay: int
    rate: float = RATE

    def build_optimizer(self) -> Optimizer:
        """Adam that warms up, goes on evenly and slows down."""
        hold = self.pretrain.steps - WARM_UP - self.decay
        pieces = [
            optax.linear_schedule(0.0, self.rate, WARM_UP),
            optax.constant_schedule(self.rate),
            optax.cosine_decay_schedule(self.rate, self.decay, FINAL_SHARE),
        ]
        return adam(optax.join_schedules(pieces, [WARM_UP, WARM_UP + hold]))


# A Gum-Net first has to learn that there are rotations at all; noise comes later.
GUM = PretrainSection(batch_size=32, snr_max=100.0, max_shift=0.1)
YOPO = PretrainSection(steps=1000, batch_size=32, snr_max=10.0, max_shift=0.2)
# 16 molecules, each seen four times.
PROTONET = PretrainSection(steps=1000, batch_size=16, snr_min=0.02, snr_max=10.0, max_shift=0.2)
DEEPFINDER = PretrainSection(steps=1000, batch_size=64, snr_max=10.0, max_shift=0.2)
ROUNDS = {
    "deepfinder": [Round(DEEPFINDER, decay=250, rate=3e-3)],
    "yopo": [Round(YOPO, decay=250)],
    "protonet": [Round(PROTONET, decay=250)],
    "jimnet": [Round(PretrainSection(steps=2200, batch_size=16, snr_max=2.0), decay=400)],
    "gumnet": [
        Round(replace(GUM, steps=1000, snr_min=1.0), decay=100),
        Round(replace(GUM, steps=2500, snr_min=0.1), decay=700),
    ],
}
TRAINERS = {**RECIPES, "yopo": yopo, "protonet": protonet, "deepfinder": deepfinder}


def draw_tilt_ranges() -> np.ndarray:
    """Half of them -60 to 60 degrees, half random: ``(NUM_RANGES, 2)``."""
    generator = np.random.default_rng(0)
    ranges = generator.uniform(*TILTS, (NUM_RANGES, 2)) * np.array([-1, 1])
    ranges[::2] = -60, 60
    return ranges.astype(np.float32)


def train(kind: str, folder: Path) -> Weights:
    """Trains in a folder, or goes on with what it holds."""
    trainer = TRAINERS[kind]
    for number, each in enumerate(ROUNDS[kind]):
        config = RunConfig(pretrain=each.pretrain)
        if number == 0:
            network = trainer.build_network(config, BOX)
        stage = trainer.molecule_stage(config, draw_tilt_ranges(), BOX, data_mesh())
        optimizer = each.build_optimizer()
        network = _train_round(config.seed, network, stage, optimizer, folder / f"round_{number}")
    sizes = trainer.network_config(config, BOX)
    return Weights(Description(sizes, config.data.contrast), network)


def _train_round(
    seed: int, network: Network, stage: Stage, optimizer: Optimizer, folder: Path
) -> Network:
    mesh, key = data_mesh(), jax.random.split(jax.random.key(seed))[0]
    state, memory = initial_state(network, optimizer), {"none": np.zeros(1)}
    state = replicate(state, mesh)
    folder.mkdir(parents=True, exist_ok=True)
    state, _ = train_in_folder(
        folder,
        network,
        state,
        memory,
        [stage],
        resume=True,
        key=key,
        optimizer=optimizer,
        mesh=mesh,
    )
    return network_of(network, state)


def main() -> None:
    """Trains and writes the file; checkpoints lie beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(ROUNDS))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out
    save_weights(out, train(arguments.network, out.with_suffix(".run")))


if __name__ == "__main__":
    main()
