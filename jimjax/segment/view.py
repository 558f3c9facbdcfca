"""What a method of adaptation sees of one step: its particles, its networks, and their teacher."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jimjax.mesh import map_batch
from jimjax.models import functional
from jimjax.models.discriminator import reversal_ramp, reverse_gradient
from jimjax.models.functional import Network
from jimjax.models.voxresnet import Segmented
from jimjax.ops.correlation import standardize
from jimjax.ops.spectrum import swap_amplitude
from jimjax.segment import losses
from jimjax.segment.config import SegmentConfig

RAMP_SHARPNESS = 5.0  # of how much a teacher counts: exp(-5 (1 - t)^2)


class Batch(NamedTuple):
    """Particles of one step.

    Attributes:
        source: ``(batch, z, y, x)``, normalised.
        masks: likewise, int8; of the source.
        target: ``(batch, z, y, x)``, normalised.
        sampled: ``(devices, num_sampled, z, y, x)`` of the target, a copy for each device.
    """

    source: Any
    masks: Any
    target: Any
    sampled: Any


class Teacher(NamedTuple):
    """The average of the students so far."""

    params: Any
    stats: Any


class Moving(NamedTuple):
    """What training changes besides parameters; takes the place of a network's statistics.

    Attributes:
        stats: batch norm statistics of the segmenter.
        teacher: None where a method has none.
        step: steps taken, float32.
    """

    stats: Any
    teacher: Teacher | None
    step: jax.Array


class Parts(NamedTuple):
    """The networks of a method.

    Attributes:
        segmenter: a VoxResNet.
        judges: discriminators by name, without statistics.
    """

    segmenter: Network
    judges: dict[str, Network]

    def together(self, *, has_teacher: bool) -> Network:
        """All of them as one network for the training loop."""
        params = {"segmenter": self.segmenter.params}
        params |= {name: judge.params for name, judge in self.judges.items()}
        teacher = None
        if has_teacher:
            teacher = Teacher(self.segmenter.params, self.segmenter.stats)
            teacher = jax.tree.map(jnp.copy, teacher)  # a step consumes what it is given
        moving = Moving(self.segmenter.stats, teacher, jnp.zeros((), jnp.float32))
        return Network(None, params, moving)

    def trained(self, params: Any, moving: Moving) -> Network:
        """The segmenter to keep: the teacher where there is one."""
        if moving.teacher is not None:
            return self.segmenter._replace(params=moving.teacher.params, stats=moving.teacher.stats)
        return self.segmenter._replace(params=params["segmenter"], stats=moving.stats)


class View:
    """What a method can ask in one step."""

    def __init__(
        self,
        config: SegmentConfig,
        parts: Parts,
        network: Network,
        mesh: Mesh,
        progress: jax.Array,
        epoch: jax.Array,
    ):
        self.config, self.mesh = config, mesh
        self.progress, self.epoch = progress, epoch
        self._parts, self._params = parts, network.params
        self.moving = network.stats

    def segment(self, *volumes: jax.Array, is_kept: bool = False) -> list[Segmented]:
        """Asks the student about batches that are normalised together, by their own statistics.

        Domains are asked about one by one: what batch norm takes off is then most of what tells
        them apart. The statistics of those that are ``is_kept`` enter the running ones, with which
        the network is used.
        """
        student = self._parts.segmenter._replace(
            params=self._params["segmenter"], stats=self.moving.stats
        )
        found, stats = functional.apply(student, jnp.concatenate(volumes), train=True)
        if is_kept:
            self.moving = self.moving._replace(stats=stats)
        num = len(volumes[0])
        return [
            jax.tree.map(lambda leaf, k=k: leaf[k * num : (k + 1) * num], found)
            for k in range(len(volumes))
        ]

    def ask_teacher(self, volumes: jax.Array) -> jax.Array:
        """Probabilities ``(batch, z, y, x, k)``, which nothing is differentiated through."""
        network = self._parts.segmenter._replace(
            params=self.moving.teacher.params, stats=self.moving.teacher.stats
        )
        found, _ = functional.apply(network, volumes, train=False)
        return jax.lax.stop_gradient(jax.nn.softmax(found.logits))

    def tell_apart(self, name: str, source: jax.Array, target: jax.Array) -> jax.Array:
        """How badly a discriminator tells domains apart; what it is shown gets worse at it."""
        strength = reversal_ramp(self.progress)
        seen = reverse_gradient(jnp.concatenate([source, target]), strength)
        logits = self.judge(name, seen)
        is_source = jnp.arange(len(seen)) < len(source)
        return losses.domain_loss(logits, is_source)

    def judge(self, name: str, seen: jax.Array) -> jax.Array:
        """Logits of a discriminator."""
        judge = self._parts.judges[name]._replace(params=self._params[name])
        return functional.apply(judge, seen, train=True)[0]

    def ramp(self) -> jax.Array:
        """Grows as a sigmoid to 1 until ``ramp_epochs``: how much a teacher counts."""
        share = jnp.clip(self.epoch / self.config.ramp_epochs, 0, 1)
        return jnp.exp(-RAMP_SHARPNESS * (1 - share) ** 2)

    def each(self, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        """Applies a function of one particle to all of a batch."""
        return map_batch(function, self.mesh)(*arrays)

    def in_style(self, volumes: jax.Array, others: jax.Array) -> jax.Array:
        """Volumes with the low amplitudes of others, normalised."""
        swap = functools.partial(swap_amplitude, fraction=self.config.band)
        return self.each(lambda own, other: standardize(swap(own, other)), volumes, others)


def average(teacher: Teacher, student: Teacher, step: jax.Array, config: SegmentConfig) -> Teacher:
    """Moves the teacher towards the student: the plain mean at first, then with a fixed decay."""
    decay = jnp.minimum(1 - 1 / (step + 1), config.ema_decay)
    student = jax.lax.stop_gradient(student)
    return jax.tree.map(
        lambda old, new: (
            decay * old + (1 - decay) * new if jnp.issubdtype(old.dtype, jnp.floating) else new
        ),
        teacher,
        student,
    )
