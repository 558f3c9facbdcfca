"""Times training steps and inference of networks beside PyTorch, in one process.

    python -m pip install -e '.[benchmark]'
    python -m benchmarks.train --network gumnet jimnet yopo voxresnet \
        --json benchmarks/results/train_cpu.json

The published sizes. Both sides have the same numbers in the same layers, see the same particles,
minimise the same loss by the same Adam: of a YOPO and a VoxResNet the cross entropy, of a Gum-Net
and a Jim-Net one minus the correlation of moved sources with their targets. ``max_error`` is how
much their losses before the first step differ, or their answers in inference, relative to the
largest. Interleaved medians, on one pinned thread in CPU time or, with ``--gpu``, on the
accelerator in wall time. ``ratio`` is the peer's time over ours, above 1 we are ahead; PyTorch is
timed with both layouts, and in bfloat16 by its autocast. A row of a Jim-Net in inference is the
clustering of particles alone. Operations are those of convolutions and products, counted before
compilation; their rate is also given as a share of the device's peak in bfloat16, if it is known.
"""

import sys

from benchmarks import measure

if __name__ == "__main__":
    measure.share() if "--gpu" in sys.argv else measure.pin()

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional as torch_functional

from benchmarks import networks, pair_networks, peers
from jimjax import ops
from jimjax.models import functional, gumnet, jimnet, voxresnet, weights, yopo
from jimjax.models.compute import Compute
from jimjax.models.functional import Network
from jimjax.train.costs import peak_flops
from jimjax.train.losses import cross_entropy
from jimjax.train.program import Program, compile_program
from jimjax.train.state import Optimizer, initial_state
from jimjax.train.step import LossResult, make_step

BOX, NUM_CLASSES, CUTOFF = 32, 5, 0.2
RATE = 1e-4
MIN_ROUNDS, MAX_ROUNDS = 3, 41
LAYOUTS = {"torch": torch.contiguous_format, "torch, channels last": torch.channels_last_3d}

Arrays = Mapping[str, jax.Array]
Tensors = Mapping[str, torch.Tensor]


class Case(NamedTuple):
    """A network on both sides.

    Attributes:
        config: sizes of ours.
        peer: makes the other's.
        loss: ``(network, batch) -> (value, statistics)`` of ours.
        peer_loss: ``(module, batch) -> value``.
        ask: ``(network, batch) -> answer`` of ours, in inference.
        peer_ask: ``(module, batch) -> answer``.
        labels_shape: of the labels of a particle.
    """

    config: Any
    peer: Callable[[Any], torch.nn.Module]
    loss: Callable[[Network, Arrays], tuple[jax.Array, Any]]
    peer_loss: Callable[[torch.nn.Module, Tensors], torch.Tensor]
    ask: Callable[[Network, Arrays], jax.Array]
    peer_ask: Callable[[torch.nn.Module, Tensors], torch.Tensor]
    labels_shape: tuple[int, ...] = ()


def _class_loss(network: Network, batch: Arrays) -> tuple[jax.Array, Any]:
    found, stats = functional.apply(network, batch["source"], train=True)
    return cross_entropy(found.logits, batch["labels"]), stats


def _class_ask(network: Network, batch: Arrays) -> jax.Array:
    return functional.apply(network, batch["source"], train=False)[0].logits


def _peer_class_loss(module: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    return torch_functional.cross_entropy(module(batch["source"]), batch["labels"])


def _peer_class_ask(module: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    return module(batch["source"])


def _voxel_ask(module: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    return module(batch["source"]).movedim(1, -1).flip(1, 2, 3)


def _mismatch(batch: Arrays, pose: ops.Pose) -> jax.Array:
    def each(source: jax.Array, target: jax.Array, pose: ops.Pose) -> jax.Array:
        moved = ops.transform(source, pose)
        return 1 - ops.constrained_correlation(moved, target, batch["mask"])

    return jnp.mean(jax.vmap(each)(batch["source"], batch["target"], pose))


def _peer_mismatch(batch: Tensors, pose: pair_networks.Pose) -> torch.Tensor:
    moved = peers.move_linear(batch["source"], *pose)
    return (1 - peers.constrained_correlation(moved, batch["target"], batch["mask"])).mean()


def _pair_loss(network: Network, batch: Arrays) -> tuple[jax.Array, Any]:
    found, stats = functional.apply(network, batch["source"], batch["target"], train=True)
    return _mismatch(batch, found.pose), stats


def _pair_ask(network: Network, batch: Arrays) -> jax.Array:
    found, _ = functional.apply(network, batch["source"], batch["target"], train=False)
    return found.pose.rotation


def _peer_pair_loss(module: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    return _peer_mismatch(batch, module(batch["source"], batch["target"]))


def _peer_pair_ask(module: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    return module(batch["source"], batch["target"]).rotation


def _joint_loss(network: Network, batch: Arrays) -> tuple[jax.Array, Any]:
    found, stats = functional.apply(network, batch["source"], batch["target"], train=True)
    mismatch = _mismatch(batch, found.coarse) + _mismatch(batch, found.fine)
    return mismatch + cross_entropy(found.logits, batch["labels"]), stats


def _joint_ask(network: Network, batch: Arrays) -> jax.Array:
    return functional.describe(network, batch["source"], train=False)[0].logits


def _peer_joint_loss(module: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    coarse, fine, logits = module(batch["source"], batch["target"])
    mismatch = _peer_mismatch(batch, coarse) + _peer_mismatch(batch, fine)
    return mismatch + torch_functional.cross_entropy(logits, batch["labels"])


def _peer_joint_ask(module: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    return module.describe(batch["source"])


_CLASSES = _class_loss, _peer_class_loss, _class_ask
CASES: dict[str, Case] = {
    "gumnet": Case(
        gumnet.paper(BOX),
        pair_networks.GumNet,
        _pair_loss,
        _peer_pair_loss,
        _pair_ask,
        _peer_pair_ask,
    ),
    "jimnet": Case(
        jimnet.paper(BOX, NUM_CLASSES),
        pair_networks.JimNet,
        _joint_loss,
        _peer_joint_loss,
        _joint_ask,
        _peer_joint_ask,
    ),
    "yopo": Case(yopo.paper(BOX, NUM_CLASSES), networks.Yopo, *_CLASSES, _peer_class_ask),
    "voxresnet": Case(
        voxresnet.paper(BOX, NUM_CLASSES), networks.VoxResNet, *_CLASSES, _voxel_ask, (BOX,) * 3
    ),
}


class Bench(NamedTuple):
    """Where and how long to measure.

    Attributes:
        device: "cpu" or "cuda", of torch.
        clock: seconds.
        num: particles, or pairs.
        compute: of ours; PyTorch runs in its precision.
        compiles: whether ``torch.compile`` is timed, too.
        seconds: to spend on each mode.
    """

    device: str
    clock: Callable[[], float]
    num: int
    compute: Compute
    compiles: bool
    seconds: float

    def run(self, name: str) -> Iterator[dict[str, Any]]:
        """Measures a network in training, then in inference."""
        case = CASES[name]
        network = weights.build(case.config, jax.random.key(0), self.compute)
        batch = _draw(case, self.num)
        for mode, prepare in (("training", self._training), ("inference", self._inference)):
            ours, program = prepare(case, network, batch)
            first = np.asarray(ours())
            functions, errors, peaks = {}, {}, {}
            for peer, call, held in self._peers(case, network, batch, mode):
                theirs = call().detach().float().cpu().numpy()
                peaks[peer] = _most_held(self.device) - held
                errors[peer] = float(np.abs(first - theirs).max() / np.abs(theirs).max())
                functions[peer] = call
            every = [ours, *functions.values()]
            once = measure.interleaved_medians(every, rounds=1, clock=self.clock)
            rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(self.seconds / sum(once))))
            own, *others = measure.interleaved_medians(every, rounds=rounds, clock=self.clock)
            rate = program.flops / own
            for peer, peer_seconds in zip(functions, others, strict=True):
                yield {
                    "op": name,
                    "mode": mode,
                    "precision": self.compute.precision,
                    "rematerialise": self.compute.rematerialise,
                    "size": f"{self.num} x {BOX}^3",
                    "peer": peer,
                    "seconds": own,
                    "peer_seconds": peer_seconds,
                    "ratio": peer_seconds / own,
                    "max_error": errors[peer],
                    "particles_per_second": self.num / own,
                    "compile_seconds": program.seconds,
                    "peak_bytes": program.needed_bytes,
                    "peer_peak_bytes": peaks[peer] or None,
                    "gflops_per_particle": program.flops / self.num / 1e9,
                    "gflops_per_second": rate / 1e9,
                    "flop_utilisation": rate / peak_flops() if peak_flops() else None,
                    "rounds": rounds,
                }

    def _training(
        self, case: Case, network: Network, batch: Mapping[str, np.ndarray]
    ) -> tuple[Callable[[], jax.Array], Program]:
        def loss(network: Network, batch: Arrays, key: jax.Array) -> tuple[jax.Array, LossResult]:
            del key
            value, stats = case.loss(network, batch)
            return value, LossResult(stats, {})

        optimizer = Optimizer(optax.adam(RATE), lambda step: jnp.float32(RATE))
        state = jax.tree.map(jnp.copy, initial_state(network, optimizer))
        arrays, key = jax.tree.map(jnp.asarray, dict(batch)), jax.random.key(1)
        program = compile_program(make_step(network, loss, optimizer), state, arrays, key)

        def step() -> jax.Array:
            nonlocal state
            state, metrics = program.run(state, arrays, key)
            return jax.block_until_ready((state, metrics))[1]["loss"]

        return step, program

    def _inference(
        self, case: Case, network: Network, batch: Mapping[str, np.ndarray]
    ) -> tuple[Callable[[], jax.Array], Program]:
        parts = network.params, network.stats
        arrays = jax.tree.map(jnp.asarray, dict(batch))

        @jax.jit
        def ask(parts: tuple[Any, Any], arrays: Arrays) -> jax.Array:
            return case.ask(Network(network.graphdef, *parts), arrays)

        program = compile_program(ask, parts, arrays)
        return lambda: jax.block_until_ready(program.run(parts, arrays)), program

    def _peers(
        self, case: Case, network: Network, batch: Mapping[str, np.ndarray], mode: str
    ) -> Iterator[tuple[str, Callable[[], torch.Tensor], int]]:
        """Name, function, and the memory that those before it hold."""
        for name, layout in LAYOUTS.items():
            for how in ("", ", compiled") if self.compiles else ("",):
                held = _now_held(self.device)
                module = case.peer(case.config)
                networks.load(module, functional.name_arrays(network.params))
                module = module.to(self.device).to(memory_format=layout)
                tensors = {
                    key: torch.from_numpy(np.array(array)).to(self.device)
                    for key, array in batch.items()
                }
                if module.is_mirrored:
                    tensors = {
                        key: t.flip(-1, -2, -3) if t.ndim == 4 else t for key, t in tensors.items()
                    }
                yield name + how, self._peer(case, module, tensors, mode, bool(how)), held

    def _peer(
        self, case: Case, module: torch.nn.Module, batch: Tensors, mode: str, compiles: bool
    ) -> Callable[[], torch.Tensor]:
        function = case.peer_loss if mode == "training" else case.peer_ask
        call = torch.compile(function) if compiles else function
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        module.train(mode == "training")
        optimizer = torch.optim.Adam(module.parameters(), RATE)
        is_half = self.compute.precision == "bfloat16"
        cast = torch.autocast(self.device, torch.bfloat16, enabled=is_half)

        @torch.no_grad()
        def ask() -> torch.Tensor:
            with cast:
                answer = call(module, batch)
            wait()
            return answer

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            with cast:
                value = call(module, batch)
            value.backward()
            optimizer.step()
            wait()
            return value

        return step if mode == "training" else ask


def _draw(case: Case, num: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    source, target = generator.normal(size=(2, num, *(BOX,) * 3)).astype(np.float32)
    mask = ops.bandpass_mask((BOX,) * 3, high=CUTOFF, norm="max")
    return {
        "source": source,
        "target": target,
        "labels": generator.integers(NUM_CLASSES, size=(num, *case.labels_shape)),
        "mask": np.asarray(mask, np.float32),
    }


def _now_held(device: str) -> int:
    """Bytes that PyTorch holds on a GPU; from here on the most of them is remembered."""
    if device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _most_held(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--gpu", action="store_true", help="measure on a GPU, both sides")
    parser.add_argument("--compile", action="store_true", help="time torch.compile, too")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rematerialise", action="store_true", help="ours alone")
    parser.add_argument("--batch", type=int, default=2, help="particles, or pairs")
    parser.add_argument("--seconds", type=float, default=60, help="to spend on each mode")
    options = parser.parse_args()
    if options.gpu:  # as jax does
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    bench = Bench(
        "cuda" if options.gpu else "cpu",
        measure.wall_clock if options.gpu else measure.cpu_clock,
        options.batch,
        Compute(options.precision, options.rematerialise),
        options.compile,
        options.seconds,
    )
    record = {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "torch")},
        "results": [],
    }
    for name in options.network:
        for row in bench.run(name):
            record["results"].append(row)
            print(json.dumps(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
