"""Gaussian mixtures beside scikit-learn's: the same start, the same number of steps, both cores.

python -m benchmarks.mixture --json benchmarks/results/mixture_cpu.json
"""

import argparse
import functools
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.mixture import GaussianMixture

from benchmarks.measure import interleaved_medians, wall_clock
from jimjax.ops import mixture
from jimjax.ops.mixture import Mixture

SIZES = ((50_000, 32, 10), (5_000, 16, 5))  # rows, dimensions, components
KINDS = {"full": "full", "diagonal": "diag"}  # of covariances, and scikit-learn's name
STEPS, ROUNDS = 20, 5
REGULARIZATION = 1e-5


def main() -> None:
    """Times all sizes and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    results = [compare(*size, kind, rounds=arguments.rounds) for size in SIZES for kind in KINDS]
    for result in results:
        print(json.dumps(result))
    if arguments.json is not None:
        record = {
            "python": platform.python_version(),
            "versions": {name: metadata.version(name) for name in ("jax", "scikit-learn", "numpy")},
            "device": jax.devices()[0].device_kind,
            "steps": STEPS,
            "results": results,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def compare(
    num: int, dimensions: int, components: int, kind: str, *, rounds: int
) -> dict[str, Any]:
    """Times as many steps of both from the same start, and says how far they agree.

    Args:
        num: rows, of overlapping clouds.
        dimensions: of each row.
        components: of the mixture.
        kind: of covariance.
        rounds: that medians are taken of.
    """
    rows, start = _problem(num, dimensions, components, kind)
    x = jnp.asarray(rows)
    refine = functools.partial(
        mixture.refine, max_iterations=STEPS, tolerance=0.0, regularization=REGULARIZATION
    )
    theirs = _scikit_learn(start, kind)

    def ours() -> Any:
        return jax.block_until_ready(refine(x, start))

    seconds = interleaved_medians([ours, lambda: theirs.fit(rows)], rounds=rounds, clock=wall_clock)
    fitted = ours()[0]
    posterior = mixture.e_step(x, fitted)
    labels = np.asarray(jnp.argmax(posterior.log_responsibilities, axis=1))
    likelihood, wanted = float(jnp.mean(posterior.log_likelihood)), theirs.score(rows)
    return {
        "op": "gaussian_mixture",
        "rows": num,
        "dimensions": dimensions,
        "components": components,
        "covariance": kind,
        "seconds": seconds[0],
        "peer": "scikit-learn, float32",
        "peer_seconds": seconds[1],
        "ratio": seconds[1] / seconds[0],
        "log_likelihood": likelihood,
        "log_likelihood_relative_difference": abs(likelihood / wanted - 1),
        "labels_equal": float(np.mean(labels == theirs.predict(rows))),
    }


def _problem(num: int, dimensions: int, components: int, kind: str) -> tuple[np.ndarray, Mixture]:
    """Rows of clouds of different shapes, and a start that k-means' seeds settle."""
    generator = np.random.default_rng(0)
    means = 3 * generator.normal(size=(components, dimensions)) / np.sqrt(dimensions / 4)
    mixing = generator.normal(size=(components, dimensions, dimensions)) / np.sqrt(dimensions)
    chosen = generator.integers(components, size=num)
    noise = np.einsum("nij,nj->ni", mixing[chosen], generator.normal(size=(num, dimensions)))
    rows = (means[chosen] + noise).astype(np.float32)
    start = mixture.fit(
        jax.random.key(0), jnp.asarray(rows), num_components=components, covariance=kind,
        num_init=1, max_iterations=1, regularization=REGULARIZATION,
    )[0]  # fmt: skip
    return rows, start


def _scikit_learn(start: Mixture, kind: str) -> GaussianMixture:
    covariances = np.asarray(start.covariances, np.float64)
    weights = np.exp(np.asarray(start.log_weights, np.float64))
    precisions = 1 / covariances[:, 0] if kind == "diagonal" else np.linalg.inv(covariances)
    return GaussianMixture(
        len(start.means),
        covariance_type=KINDS[kind],
        tol=0.0,
        max_iter=STEPS,
        reg_covar=REGULARIZATION,
        weights_init=weights / weights.sum(),
        means_init=np.asarray(start.means),
        precisions_init=precisions,
    )


if __name__ == "__main__":
    main()
