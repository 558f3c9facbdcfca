"""Times ``jimjax.ops`` beside PyTorch and scipy, forward and with the gradient.

    python -m pip install -e '.[benchmark]'
    python -m benchmarks.ops --json benchmarks/results/ops_cpu.json

Writes that file and a Markdown table of the same name (.md). Interleaved medians, on one pinned
thread in CPU time or, with ``--gpu``, on the accelerator in wall time. ``ratio`` is the peer's
time over ours, above 1 we are ahead. ``kind`` is "same" where both sides run one algorithm, which
says something about JAX against the peer, or "formulation" where ours is a better algorithm,
which a user of the peer could adopt, too. ``max_error`` is ours against float64, relative to the
largest value. ``roof_share`` is the least time in which the device could read the inputs, write
the outputs and do the products, over ours.
"""

import sys

from benchmarks import measure

if __name__ == "__main__":
    measure.share() if "--gpu" in sys.argv else measure.pin()

import argparse
import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import cases
from benchmarks.cases import Case

MIN_ROUNDS, MAX_ROUNDS = 5, 41


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where and how long to measure.

    Attributes:
        torch_device: "cpu" or "cuda".
        clock: seconds.
        roof: of the device.
        compiles: whether ``torch.compile`` of each peer is timed, too.
        seconds: to spend on each line of the table.
    """

    torch_device: str
    clock: Callable[[], float]
    roof: measure.Roof
    compiles: bool
    seconds: float

    def run(self, case: Case) -> Iterator[dict[str, object]]:
        """Measures the forward pass and, if there is one, forward and backward together."""
        yield from self._measure(case, is_gradient=False)
        if case.num_differentiated:
            yield from self._measure(case, is_gradient=True)

    def _measure(self, case: Case, *, is_gradient: bool) -> Iterator[dict[str, object]]:
        prepare = self._gradient if is_gradient else self._forward
        ours, call_peer, error, num_bytes = prepare(case)
        peers = {case.peer: call_peer(case.theirs)}
        if self.compiles and case.is_torch:
            peers[f"{case.peer}, compiled"] = call_peer(torch.compile(case.theirs))
        functions = [ours, *peers.values()]
        once = measure.interleaved_medians(functions, rounds=1, clock=self.clock)
        rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(self.seconds / sum(once))))
        own, *others = measure.interleaved_medians(functions, rounds=rounds, clock=self.clock)
        passes = 1 + case.num_differentiated if is_gradient else 1
        for peer, seconds in zip(peers, others, strict=True):
            yield {
                "op": case.op,
                "size": case.size,
                "mode": "gradient" if is_gradient else "forward",
                "peer": peer,
                "kind": case.kind,
                "seconds": own,
                "peer_seconds": seconds,
                "ratio": seconds / own,
                "max_error": error,
                "roof_share": self.roof.seconds(num_bytes, passes * case.flops) / own,
                "rounds": rounds,
            }

    def _forward(self, case: Case) -> tuple[Callable, Callable, float, int]:
        compiled, arrays = jax.jit(case.ours), [jnp.asarray(a) for a in case.inputs]

        def peer(function: Callable, dtype: type = np.float32) -> Callable:
            inputs = [a.astype(dtype) for a in case.inputs]
            if not case.is_torch:
                return lambda: function(*inputs)
            tensors = [self._tensor(a) for a in inputs]

            @torch.no_grad()
            def call() -> torch.Tensor:
                return self._wait(function(*tensors))

            return call

        found = compiled(*arrays)
        exact = peer(case.exact or case.theirs, np.float64)()
        return (
            lambda: jax.block_until_ready(compiled(*arrays)),
            peer,
            _error([found], [exact.cpu().numpy() if case.is_torch else exact]),
            _num_bytes(*arrays, found),
        )

    def _gradient(self, case: Case) -> tuple[Callable, Callable, float, int]:
        count = case.num_differentiated
        arrays = [jnp.asarray(a) for a in case.inputs]
        shape = jax.eval_shape(case.ours, *arrays).shape
        cotangent = np.random.default_rng(2).normal(size=shape).astype(np.float32)

        @jax.jit
        def compiled(cotangent: jax.Array, *arrays: jax.Array) -> tuple:
            out, pull = jax.vjp(lambda *first: case.ours(*first, *arrays[count:]), *arrays[:count])
            return out, pull(cotangent)

        def peer(function: Callable, dtype: type = np.float32) -> Callable:
            tensors = [self._tensor(a.astype(dtype)) for a in case.inputs]
            wanted = [tensor.requires_grad_() for tensor in tensors[:count]]
            weights = self._tensor(cotangent.astype(dtype))
            return lambda: self._wait(torch.autograd.grad(function(*tensors), wanted, weights))

        given = jnp.asarray(cotangent)
        found = compiled(given, *arrays)
        exact = peer(case.exact or case.theirs, np.float64)()
        return (
            lambda: jax.block_until_ready(compiled(given, *arrays)),
            peer,
            _error(found[1], [gradient.cpu().numpy() for gradient in exact]),
            _num_bytes(given, *arrays, *jax.tree.leaves(found)),
        )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.torch_device)

    def _wait(self, result: object) -> object:
        if self.torch_device == "cuda":
            torch.cuda.synchronize()
        return result


def _error(found: list[jax.Array], exact: list[np.ndarray]) -> float:
    return max(
        float(np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b)))
        for a, b in zip(found, exact, strict=True)
    )


def _num_bytes(*arrays: jax.Array) -> int:
    return sum(array.nbytes for array in arrays)


def markdown(report: dict) -> str:
    """The results as a table, with what they were measured on."""
    lines = [
        f"Measured on {report['device']} with "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + f". Roof: {report['roof']['bytes_per_second'] / 1e9:.1f} GB/s read and written, "
        + f"{report['roof']['flops_per_second'] / 1e9:.0f} GFLOP/s.",
        "",
        "| op | size | mode | peer | kind | ours (ms) | peer (ms) | ratio | of roof | max error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(result) for result in report["results"]]
    measured = dict.fromkeys(result["op"] for result in report["results"])
    bounds = [f"- {op}: {cases.BOUNDS[op]}" for op in measured if op in cases.BOUNDS]
    if bounds and report["is_cpu"]:
        lines += ["", "What bounds the ops that are not well ahead:", "", *bounds]
    return "\n".join(lines) + "\n"


def _row(r: dict) -> str:
    return (
        f"| {r['op']} | {r['size']} | {r['mode']} | {r['peer']} | {r['kind']} "
        f"| {1e3 * r['seconds']:.2f} | {1e3 * r['peer_seconds']:.2f} | {r['ratio']:.2f} "
        f"| {r['roof_share']:.0%} | {r['max_error']:.0e} |"
    )


def _device() -> str:
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line for line in cpu_info.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    return f"CPU, one thread: {model}"


def main() -> None:
    """Runs the cases and writes the two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--only", nargs="*", default=None, help="names of ops; all if not given")
    parser.add_argument("--seconds", type=float, default=4.0, help="to spend on each line")
    parser.add_argument("--gpu", action="store_true", help="measure on a GPU, both sides")
    parser.add_argument("--compile", action="store_true", help="time torch.compile, too")
    options = parser.parse_args()
    if options.gpu and jax.default_backend() != "gpu":
        parser.error("--gpu: jax finds no GPU; install jax[cuda13] and look at jimjax doctor")
    if options.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch finds no GPU; install a CUDA build of it")
    torch.set_num_threads(1)
    clock = measure.wall_clock if options.gpu else measure.cpu_clock
    roof = measure.find_roof(clock)
    bench = Bench("cuda" if options.gpu else "cpu", clock, roof, options.compile, options.seconds)
    report = {
        "device": _device(),
        "is_cpu": not options.gpu,
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "torch", "scipy", "numpy")
        },
        "roof": roof._asdict(),
        "results": [],
    }
    for case in cases.every():
        if options.only is None or case.op in options.only:
            for result in bench.run(case):
                report["results"].append(result)
                print(_row(result), flush=True)
            jax.clear_caches()
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    options.json.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
