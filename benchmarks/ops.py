"""Times ``jimjax.ops`` on CPU beside PyTorch and scipy, forward and with the gradient.

    python -m pip install -e '.[benchmark]'
    python -m benchmarks.ops --json benchmarks/results/ops_cpu.json

Writes that file and a Markdown table of the same name (.md). One pinned thread, CPU time,
interleaved medians; ``ratio`` is the peer's time over ours, above 1 we are ahead. ``kind`` is
"same" where both sides run one algorithm, which says something about JAX against the peer, or
"formulation" where ours is a better algorithm, which a user of the peer could adopt, too.
``max_error`` is ours against float64, relative to the largest value.
"""

from benchmarks import measure

if __name__ == "__main__":
    measure.pin()

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import peers
from jimjax import ops

VOLUMES = ((16, 32), (8, 64), (1, 192))  # batch, box
CUTOFF = 0.25  # cycles per voxel, of the constrained correlation: |k| <= 8 in a box of 32
SIGMA_SPACE, SIGMA_RANGE = 120.0, 1.2  # Vox-UDA
LOCAL = ((4, 16, 32, 2), (4, 16, 32, 3))  # batch, box, channels, radius
GLOBAL = ((16, 8, 64), (4, 10, 128))  # batch, box, channels
POOLED = ((4, 32, 32, 16), (4, 16, 64, 8))  # batch, box, channels, out
CONVOLVED = (  # batch, box, in, out, dilation
    (4, 32, 1, 32, 1),
    (4, 16, 32, 64, 1),
    (4, 16, 64, 128, 1),
    (2, 32, 32, 32, 1),
    (4, 16, 32, 32, 2),
)
MIN_ROUNDS, MAX_ROUNDS = 5, 41


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one size beside one peer.

    Attributes:
        op: name of the op.
        size: of its input, for the table.
        peer: package and form that it is compared with.
        kind: "same" or "formulation".
        ours: function of batched jax arrays.
        theirs: the peer's function of tensors or, for scipy, of numpy arrays.
        inputs: float32 arrays.
        exact: a peer whose result in float64 ours must have; ``theirs`` if None.
        num_differentiated: how many of the inputs, from the first, the gradient is for; 0 for a
            forward pass alone.
        is_torch: whether the peer takes tensors.
    """

    op: str
    size: str
    peer: str
    kind: str
    ours: Callable
    theirs: Callable
    inputs: tuple[np.ndarray, ...]
    exact: Callable | None = None
    num_differentiated: int = 1
    is_torch: bool = True


def volume_cases() -> Iterator[Case]:
    for batch, box in VOLUMES:
        size = f"{batch} x {box}^3"
        generator = np.random.default_rng(box)
        volumes, others = generator.normal(size=(2, batch, box, box, box)).astype(np.float32)
        turns = np.asarray(
            jax.vmap(ops.random_rotation)(jax.random.split(jax.random.key(0), batch))
        )
        yield Case(
            "rotate_linear",
            size,
            "torch grid_sample",
            "same",
            jax.vmap(ops.rotate),
            peers.rotate_linear,
            (volumes, turns),
        )
        yield Case(
            "rotate_cubic",
            size,
            "scipy affine_transform",
            "same",
            jax.vmap(functools.partial(ops.rotate, order=3)),
            peers.rotate_cubic,
            (volumes, turns),
            num_differentiated=0,
            is_torch=False,
        )
        yield from correlation_cases(size, volumes, others)
        sigmas = {"sigma_space": SIGMA_SPACE, "sigma_range": SIGMA_RANGE}
        for name in ("bilateral", "gradient_bilateral"):
            yield Case(
                name,
                size,
                "torch shifted slices",
                "same",
                jax.vmap(functools.partial(getattr(ops, name), **sigmas)),
                functools.partial(getattr(peers, name), **sigmas),
                (volumes,),
            )


def correlation_cases(size: str, volumes: np.ndarray, others: np.ndarray) -> Iterator[Case]:
    box = volumes.shape[-1]
    mask = ops.bandpass_mask((box,) * 3, high=CUTOFF, norm="max")
    small = 2 * int(CUTOFF * box) + 2  # even, and holds the band without its Nyquist planes
    small_mask = ops.bandpass_mask((small,) * 3, high=CUTOFF * box / small, norm="max")

    def correlate(a: jax.Array, b: jax.Array) -> jax.Array:
        return ops.constrained_correlation(a, b, mask)

    def correlate_cropped(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = ops.fourier_resize(a, small), ops.fourier_resize(b, small)
        return ops.constrained_correlation(a, b, small_mask)

    def peer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return peers.constrained_correlation(a, b, torch_mask.to(a.dtype))

    torch_mask = torch.from_numpy(np.array(mask))
    for kind, ours in (("same", correlate), ("formulation", correlate_cropped)):
        yield Case(
            "constrained_correlation",
            size,
            "torch Parseval",
            kind,
            jax.vmap(ours),
            peer,
            (volumes, others),
            num_differentiated=2,
        )


def feature_cases() -> Iterator[Case]:
    for batch, box, channels, radius in LOCAL:
        pair = _features(2, batch, box, channels)
        for kind, name, peer in (
            ("same", "torch row products", peers.local_correlation_rows),
            ("formulation", "torch shifted sums", peers.local_correlation),
        ):
            yield Case(
                "local_correlation",
                f"{batch} x {box}^3 x {channels}, radius {radius}",
                name,
                kind,
                jax.vmap(functools.partial(ops.local_correlation, radius=radius)),
                functools.partial(peer, radius=radius),
                tuple(pair),
                exact=functools.partial(peers.local_correlation, radius=radius),
                num_differentiated=2,
            )
    for batch, box, channels in GLOBAL:
        pair = _features(2, batch, box, channels)
        yield Case(
            "global_correlation",
            f"{batch} x {box}^3 x {channels}",
            "torch matmul",
            "same",
            lambda source, target: jax.vmap(ops.global_correlation)(source, target).reshape(
                source.shape[0], source[0, ..., 0].size, -1
            ),
            peers.global_correlation,
            tuple(pair),
            num_differentiated=2,
        )
    for batch, box, channels, out in POOLED:
        (features,) = _features(1, batch, box, channels)
        matrix = torch.from_numpy(ops.spectral_pool_matrix(box, out, out))

        def same(x: torch.Tensor, matrix: torch.Tensor = matrix) -> torch.Tensor:
            return peers.spectral_pool(x, matrix.to(x.dtype))

        for kind, name, peer in (
            ("same", "torch matmul", same),
            ("formulation", "torch FFT crop", functools.partial(peers.spectral_pool_fft, out=out)),
        ):
            yield Case(
                "spectral_pool",
                f"{batch} x {box}^3 x {channels} to {out}^3",
                name,
                kind,
                jax.vmap(functools.partial(ops.spectral_pool, keep=out, out=out)),
                peer,
                (features,),
                exact=same,
            )


def convolution_cases() -> Iterator[Case]:
    for batch, box, num_in, num_out, dilation in CONVOLVED:
        (features,) = _features(1, batch, box, num_in)
        kernel = np.random.default_rng(1).normal(size=(3, 3, 3, num_in, num_out))
        yield Case(
            "conv3d",
            f"{batch} x {box}^3, {num_in} to {num_out}, dilation {dilation}",
            "torch channels-last",
            "same",
            functools.partial(ops.conv3d, dilation=dilation),
            functools.partial(_channels_last_conv, dilation=dilation),
            (features, kernel.astype(np.float32)),
            num_differentiated=2,
        )


def _channels_last_conv(x: torch.Tensor, kernel: torch.Tensor, *, dilation: int) -> torch.Tensor:
    # The permuted x is channels-last memory already.
    kernel = kernel.permute(4, 3, 0, 1, 2).contiguous(memory_format=torch.channels_last_3d)
    return peers.conv3d(x.permute(0, 4, 1, 2, 3), kernel, dilation=dilation).permute(0, 2, 3, 4, 1)


def _features(count: int, batch: int, box: int, channels: int) -> np.ndarray:
    shape = (count, batch, box, box, box, channels)
    return np.random.default_rng(box).normal(size=shape).astype(np.float32)


def run_case(case: Case, *, seconds: float) -> Iterator[dict[str, object]]:
    """Measures the forward pass and, if there is one, forward and backward together."""
    yield _measure(case, "forward", _forward(case), seconds)
    if case.num_differentiated:
        yield _measure(case, "gradient", _gradient(case), seconds)


def _measure(
    case: Case, mode: str, sides: tuple[Callable, Callable, float], seconds: float
) -> dict[str, object]:
    ours, theirs, error = sides
    once = measure.interleaved_medians([ours, theirs], rounds=1, clock=measure.cpu_clock)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / sum(once))))
    own, peer = measure.interleaved_medians([ours, theirs], rounds=rounds, clock=measure.cpu_clock)
    return {
        "op": case.op,
        "size": case.size,
        "mode": mode,
        "peer": case.peer,
        "kind": case.kind,
        "seconds": own,
        "peer_seconds": peer,
        "ratio": peer / own,
        "max_error": error,
        "rounds": rounds,
    }


def _forward(case: Case) -> tuple[Callable, Callable, float]:
    compiled, arrays = jax.jit(case.ours), [jnp.asarray(a) for a in case.inputs]
    exact = _call_peer(case.exact or case.theirs, case, np.float64)
    error = _error([compiled(*arrays)], [np.asarray(exact())])
    return (
        lambda: jax.block_until_ready(compiled(*arrays)),
        _call_peer(case.theirs, case, np.float32),
        error,
    )


def _call_peer(function: Callable, case: Case, dtype: type) -> Callable:
    inputs = [a.astype(dtype) for a in case.inputs]
    if not case.is_torch:
        return lambda: function(*inputs)
    tensors = [torch.from_numpy(a) for a in inputs]

    @torch.no_grad()
    def call() -> torch.Tensor:
        return function(*tensors)

    return call


def _gradient(case: Case) -> tuple[Callable, Callable, float]:
    count = case.num_differentiated
    arrays = [jnp.asarray(a) for a in case.inputs]
    shape = jax.eval_shape(case.ours, *arrays).shape
    cotangent = np.random.default_rng(2).normal(size=shape).astype(np.float32)

    @jax.jit
    def compiled(cotangent: jax.Array, *arrays: jax.Array) -> tuple:
        out, pull = jax.vjp(lambda *first: case.ours(*first, *arrays[count:]), *arrays[:count])
        return out, pull(cotangent)

    def peer(function: Callable, dtype: type) -> Callable:
        tensors = [torch.from_numpy(a.astype(dtype)) for a in case.inputs]
        wanted = [tensor.requires_grad_() for tensor in tensors[:count]]
        weights = torch.from_numpy(cotangent.astype(dtype))
        return lambda: torch.autograd.grad(function(*tensors), wanted, weights)

    exact = peer(case.exact or case.theirs, np.float64)()
    error = _error(compiled(cotangent, *arrays)[1], [gradient.numpy() for gradient in exact])
    cotangent_array = jnp.asarray(cotangent)
    return (
        lambda: jax.block_until_ready(compiled(cotangent_array, *arrays)),
        peer(case.theirs, np.float32),
        error,
    )


def _error(found: list[jax.Array], exact: list[np.ndarray]) -> float:
    return max(
        float(np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b)))
        for a, b in zip(found, exact, strict=True)
    )


def markdown(report: dict) -> str:
    """The results as a table, with what they were measured on."""
    lines = [
        f"Measured on {report['device']} with "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + ".",
        "",
        "| op | size | mode | peer | kind | ours (ms) | peer (ms) | ratio | max error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["results"]:
        lines.append(
            f"| {r['op']} | {r['size']} | {r['mode']} | {r['peer']} | {r['kind']} "
            f"| {1e3 * r['seconds']:.2f} | {1e3 * r['peer_seconds']:.2f} | {r['ratio']:.2f} "
            f"| {r['max_error']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def _device() -> str:
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "device": _device(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "torch", "scipy", "numpy")
        },
        "results": [],
    }
    for cases in (volume_cases(), feature_cases(), convolution_cases()):
        for case in cases:
            if options.only is None or case.op in options.only:
                for result in run_case(case, seconds=options.seconds):
                    report["results"].append(result)
                    print(markdown(report).splitlines()[-1], flush=True)
                jax.clear_caches()
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    options.json.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
