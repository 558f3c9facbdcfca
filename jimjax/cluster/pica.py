"""PICA in three dimensions: classes that are sure of themselves, whatever happens to a particle.

The network says how probable each class is, of particles and of changed copies of them. Over a
batch, a class is a vector of probabilities, and those of different classes shall be orthogonal.
A second head, that divides the particles into more parts, is trained by turns with the first.

Reference: Huang, Gong, Zhu 2020, PICA, and its published code; the network here is a YOPO.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from jimjax.cluster.assignment import Linear
from jimjax.cluster.augmentation import perturb_all
from jimjax.cluster.learner import Learner, Plan
from jimjax.cluster.pica_config import PicaConfig
from jimjax.data.batches import Taken, index_batches, num_batches
from jimjax.io.errors import InputError
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.ops.matching import l2_normalize
from jimjax.train.loop import Stage
from jimjax.train.state import Optimizer
from jimjax.train.step import LossFunction, LossResult
from jimjax.train.yopo import PRESETS

TINY = 1e-12  # beside the squared length of a class over a batch


class Batch(NamedTuple):
    """Particles, and which head is to learn from them.

    Attributes:
        volumes: ``(batch, z, y, x)``, normalised.
        is_main: ``(batch,)``, all the same: 1 for the head of the classes.
    """

    volumes: np.ndarray
    is_main: np.ndarray


class Pica(Learner):
    """Clusters particles as PICA does, with a YOPO.

    Of the head's outputs the first are for the classes, the others for the many parts. Its
    ``config`` is a ``PicaConfig``; see ``Learner`` for the other arguments.
    """

    presets: ClassVar = PRESETS

    @property
    def num_outputs(self) -> int:
        """Classes and parts."""
        return self.max_classes + self.config.num_parts

    def plan(self, network: Network, volumes: np.ndarray, mesh: Mesh) -> Plan:
        """All epochs, in each of which either head sees every particle."""
        config, num = self.config, len(volumes)
        if len(config.candidates) != 1:
            raise InputError(
                f"PICA cannot choose among {len(config.candidates)} numbers of classes; say how "
                "many there are (--num-classes)"
            )
        per_head = num_batches(num, config.batch_size)

        def draw(epoch: int, memory: Any) -> Iterator[Batch]:
            del memory
            for turn, is_main in enumerate((0.0, 1.0)):
                order = index_batches(
                    num, config.batch_size, seed=config.seed, epoch=2 * epoch + turn
                )
                for rows in order:
                    turns = np.full(len(rows), is_main, np.float32)
                    yield Batch(Taken(rows, volumes), turns)

        loss = _make_loss(config, mesh, num_classes=self.max_classes)
        stage = Stage("pica", config.epochs, loss, draw, 2 * per_head)
        schedule = optax.constant_schedule(config.learning_rate)
        optimizer = Optimizer(optax.adam(schedule), schedule)
        return Plan([stage], {"none": np.zeros(1)}, optimizer)

    def conclude(
        self, network: Network, memory: Any, volumes: np.ndarray
    ) -> tuple[Network, Linear]:
        """The network, and the part of its head that is for the classes."""
        del memory, volumes
        arrays, num = functional.name_arrays(network.params), self.max_classes
        kernel, bias = (np.asarray(arrays[name]) for name in ("head.kernel", "head.bias"))
        return network, Linear(np.ascontiguousarray(kernel[:, :num]), bias[:num])


def partition_loss(logits: jax.Array, copies: jax.Array, *, balance: float) -> jax.Array:
    """How unsure a division of a batch is, and how uneven.

        M = P^T Q,   CE(rows of M, diagonal) + balance (log k - H(mean of P))

    with P and Q the softmax of both logits, each column of length 1.

    Args:
        logits: ``(batch, k)`` of particles.
        copies: ``(copies, batch, k)`` of changed copies of them.
        balance: weight of the second part.

    Returns:
        Scalar; at best k classes of equal size that do not depend on the change.

    Reference: Huang, Gong, Zhu 2020, equations 5 to 10.
    """
    num = logits.shape[-1]
    known = jax.nn.log_softmax(logits)
    own = jnp.broadcast_to(jnp.exp(known), copies.shape).reshape(-1, num)
    other = jax.nn.softmax(copies).reshape(-1, num)
    own, other = (l2_normalize(each.T, eps=TINY) for each in (own, other))
    similarity = jnp.dot(own, other.T, precision=lax.Precision.HIGHEST)
    certainty = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(similarity)))
    log_mean = jax.nn.logsumexp(known, axis=0) - jnp.log(len(logits))
    return certainty + balance * (jnp.log(num) + jnp.sum(jnp.exp(log_mean) * log_mean))


def _make_loss(config: PicaConfig, mesh: Mesh, *, num_classes: int) -> LossFunction:
    change = perturb_all(mesh, max_shift=config.max_shift, noise=config.noise)

    def loss(network: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        copies = jnp.concatenate([batch.volumes] * config.num_copies)
        both = jnp.concatenate([batch.volumes, change(key, copies)])
        found, stats = functional.apply(network, both, train=True)
        views = found.logits.reshape(1 + config.num_copies, len(batch.volumes), -1)
        main, parts = (
            partition_loss(each[0], each[1:], balance=config.balance)
            for each in (views[..., :num_classes], views[..., num_classes:])
        )
        return jnp.where(batch.is_main[0] > 0, main, parts), LossResult(stats, {})

    return loss
