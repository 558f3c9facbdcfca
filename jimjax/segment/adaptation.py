"""What each method asks of a segmentation network, step by step.

Source particles have masks, target particles have none. A ``Method`` sees both in one batch and
says which terms are minimised; all share the network, the losses, the teacher and the loop.

References: Li et al., Vox-UDA; Ganin et al. 2016 (DANN); Liu et al. 2020 (PDAM); Xu et al. 2023
(ASC); Zhao et al. 2022 (LE-UDA, of which only the outline is published: what is here is our
reading). What Vox-UDA leaves open is decided here: both the clean and the noisy source are
segmented, by cross entropy and soft Dice; domains are told apart by the deepest features.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jimjax.mesh import map_batch
from jimjax.models import functional
from jimjax.models.discriminator import reversal_ramp, reverse_gradient
from jimjax.models.functional import Network
from jimjax.models.voxresnet import Segmented
from jimjax.ops import noise
from jimjax.ops.bilateral_filters import bilateral, gradient_bilateral
from jimjax.ops.correlation import standardize
from jimjax.ops.spectrum import highpass, match_power, radial_power, swap_amplitude
from jimjax.segment import losses
from jimjax.segment.config import SegmentConfig
from jimjax.segment.cut_mix import cut_mix_box
from jimjax.train.state import Optimizer, adam
from jimjax.train.step import LossFunction, LossResult

LEAST_SHARE = 1e-4  # of voxels that belong to particles, where a batch has none
MOST_NOISE = 0.95  # of a source particle's variance, replaced by noise of the target's colour
RAMP_SHARPNESS = 5.0  # of the weight of consistency: exp(-5 (1 - t)^2)
TASK_WEIGHTS = 0.5, 1.5  # least and most that a source particle counts in PDAM
WITHIN_NOISE = 0.1  # deviation of the noise that the teacher of LE-UDA sees the target with

Terms = dict[str, jax.Array]


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


# (view, batch, key) -> terms whose sum is minimised.
Method = Callable[[View, Batch, jax.Array], Terms]


def build_loss(
    config: SegmentConfig, parts: Parts, mesh: Mesh, *, num_steps: int, steps_per_epoch: int
) -> LossFunction:
    """The loss of a method.

    Args:
        config: which, and how.
        parts: its networks, for their static structure.
        mesh: devices.
        num_steps: of the whole training.
        steps_per_epoch: as it says.

    Returns:
        A loss of ``Parts.together`` and a ``Batch``.
    """
    method = METHODS[config.method]

    def loss(network: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        step = network.stats.step
        moving = network.stats
        if moving.teacher is not None:
            student = Teacher(network.params["segmenter"], moving.stats)
            moving = moving._replace(teacher=average(moving.teacher, student, step, config))
            network = network._replace(stats=moving)
        view = View(config, parts, network, mesh, step / num_steps, step / steps_per_epoch)
        terms = method(view, batch, key)
        return sum(terms.values()), LossResult(view.moving._replace(step=step + 1), terms)

    return loss


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


def segmentation(found: Segmented, masks: jax.Array) -> jax.Array:
    """Cross entropy and soft Dice."""
    return losses.cross_entropy(found.logits, masks) + losses.soft_dice_loss(found.logits, masks)


def _source_only(view: View, batch: Batch, key: jax.Array) -> Terms:
    del key
    (source,) = view.segment(batch.source, is_kept=True)
    return {"segmentation": segmentation(source, batch.masks)}


def _dann(view: View, batch: Batch, key: jax.Array) -> Terms:
    del key
    (source,) = view.segment(batch.source)
    (target,) = view.segment(batch.target, is_kept=True)
    apart = view.tell_apart("features", source.taps[-1], target.taps[-1])
    return {
        "segmentation": segmentation(source, batch.masks),
        "domain": view.config.adversarial * apart,
    }


def _pdam(view: View, batch: Batch, key: jax.Array) -> Terms:
    """Two discriminators, and source particles count more the more like the target they look."""
    del key
    (source,) = view.segment(batch.source)
    (target,) = view.segment(batch.target, is_kept=True)
    told = view.judge("features", source.taps[-1]).reshape(len(batch.source), -1)
    share = jax.nn.sigmoid(jax.lax.stop_gradient(told).mean(axis=1))
    counts = jnp.clip((1 - share) / share, *TASK_WEIGHTS)[:, None, None, None]
    shape = batch.masks.shape
    weights = jnp.broadcast_to(counts, shape)
    segmented = losses.cross_entropy(source.logits, batch.masks, weights=weights)
    segmented += losses.soft_dice_loss(source.logits, batch.masks, weights=weights)
    masks = [jax.nn.softmax(found.logits) for found in (source, target)]
    apart = view.tell_apart("features", source.taps[-1], target.taps[-1])
    apart += view.tell_apart("masks", *masks)
    return {"segmentation": segmented, "domain": view.config.adversarial * apart}


def _asc(view: View, batch: Batch, key: jax.Array) -> Terms:
    """Source in both appearances; students of mixed targets agree with the teacher's mixture."""
    styled = view.in_style(batch.source, batch.target)
    back = view.in_style(batch.target, batch.source)
    other_rows = jnp.roll(jnp.arange(len(batch.target)), 1)
    boxes = jax.vmap(lambda k: cut_mix_box(k, batch.target.shape[1:]))(
        jax.random.split(key, len(batch.target))
    )

    def mix(own: jax.Array) -> jax.Array:
        inside = boxes.reshape(*boxes.shape, *[1] * (own.ndim - boxes.ndim))
        return jnp.where(inside, own[other_rows], own)

    source, in_target = view.segment(batch.source, styled)
    (mixed_back,) = view.segment(mix(back))
    (mixed,) = view.segment(mix(batch.target), is_kept=True)
    # Each appearance is taught by what the teacher says of the other one.
    taught = mix(view.ask_teacher(back)), mix(view.ask_teacher(batch.target))
    asked = (jax.nn.softmax(found.logits) for found in (mixed, mixed_back))
    agreement = sum(jnp.mean((a - b) ** 2) for a, b in zip(asked, taught, strict=True)) / 2
    segmented = (segmentation(source, batch.masks) + segmentation(in_target, batch.masks)) / 2
    return {
        "segmentation": segmented,
        "agreement": view.ramp() * view.config.consistency_weight * agreement,
    }


def _le_uda(view: View, batch: Batch, key: jax.Array) -> Terms:
    """Our reading: agreement between domains and within the target, and doubt that tells none."""
    styled = view.in_style(batch.source, batch.target)
    back = view.in_style(batch.target, batch.source)
    source, in_target = view.segment(batch.source, styled)
    (target,) = view.segment(batch.target, is_kept=True)
    disturbed = batch.target + WITHIN_NOISE * jax.random.normal(key, batch.target.shape)
    asked = jax.nn.softmax(target.logits)
    between = jnp.mean((asked - view.ask_teacher(back)) ** 2)
    within = jnp.mean((asked - view.ask_teacher(disturbed)) ** 2)
    segmented = (segmentation(source, batch.masks) + segmentation(in_target, batch.masks)) / 2
    doubts = [entropy_map(found.logits) for found in (source, target)]
    return {
        "segmentation": segmented,
        "agreement": view.ramp() * view.config.consistency_weight * (between + within) / 2,
        "domain": view.config.adversarial * view.tell_apart("doubt", *doubts),
    }


def _vox_uda(view: View, batch: Batch, key: jax.Array) -> Terms:
    config, known = view.config, [batch.source]
    if config.noise != "none":
        known.append(add_target_noise(view, batch, key))
    source, *noisy = view.segment(*known)
    (target,) = view.segment(batch.target, is_kept=True)
    segmented = [segmentation(found, batch.masks) for found in (source, *noisy)]
    terms = {"segmentation": sum(segmented) / len(segmented)}
    for other in noisy:
        terms["consistency"] = losses.consistency(
            source.taps, other.taps, weights=config.consistency
        )
    apart = view.tell_apart("features", source.taps[-1], target.taps[-1])
    terms["domain"] = config.adversarial * apart
    if config.denoiser != "none":
        told = view.ask_teacher(denoise(view, batch.target))
        share = jnp.mean(batch.masks > 0)
        terms["pseudo"] = view.ramp() * pseudo_loss(target.logits, told, share, config.confidence)
    return terms


def pseudo_loss(
    logits: jax.Array, told: jax.Array, share: jax.Array, confidence: float
) -> jax.Array:
    """Cross entropy and soft Dice with what a teacher is sure of.

    Of a voxel one may be sure to 98 % that it is background before having looked. So it is asked
    how sure the teacher would be if particle and background were equally likely: its probabilities
    are divided by what they are on average. Otherwise what it overlooks is surely background,
    outnumbers what it finds, and student and teacher soon find nothing at all.

    Args:
        logits: ``(batch, z, y, x, 2)``.
        told: the teacher's probabilities, same shape.
        share: of voxels that belong to particles, in the source.
        confidence: from which it is sure of what it calls a voxel.
    """
    evidence = told / jnp.stack([1 - share, jnp.maximum(share, LEAST_SHARE)])
    evidence /= jnp.sum(evidence, axis=-1, keepdims=True)
    labels = jnp.argmax(told, axis=-1)
    is_sure = jnp.sum(evidence * jax.nn.one_hot(labels, 2), axis=-1) >= confidence
    weights = is_sure.astype(jnp.float32)
    return losses.cross_entropy(logits, labels, weights=weights) + losses.soft_dice_loss(
        logits, labels, weights=weights
    )


def add_target_noise(view: View, batch: Batch, key: jax.Array) -> jax.Array:
    """Source particles with noise of the target's variance, normalised.

    Where the spectrum is to be matched, they are given the target's radial power first, and noise
    of that power in place of a share of theirs that is drawn for each, up to ``MOST_NOISE``: how
    much of the target's power is signal cannot be told without labels.
    """
    config, volumes = view.config, batch.source
    noise_key, mix_key = jax.random.split(key)
    num = len(volumes)
    if config.match_spectrum:
        own = view.each(lambda volume: radial_power(volume[None]), volumes).mean(axis=0)
        powers = (own, radial_power(batch.sampled[0]))
        copies = (jnp.broadcast_to(power, (num, len(power))) for power in powers)
        volumes = view.each(mix_with_noise, jax.random.split(mix_key, num), volumes, *copies)
    variance = noise.noise_variance(
        batch.sampled[0], fraction=config.kept, order=config.variance_order
    )

    def add(key: jax.Array, volume: jax.Array, variance: jax.Array) -> jax.Array:
        return standardize(noise.draw_noise(key, volume, variance, kind=config.noise))

    keys = jax.random.split(noise_key, num)
    return view.each(add, keys, volumes, jnp.broadcast_to(variance, num))


def mix_with_noise(
    key: jax.Array, volume: jax.Array, power: jax.Array, target_power: jax.Array
) -> jax.Array:
    """A volume at another radial power, a random share of its variance replaced by noise of that.

    Args:
        key: of noise and share.
        volume: ``(z, y, x)``.
        power: ``(n // 2 + 1,)``, of its kind; see ``ops.radial_power``.
        target_power: same shape, to get.

    Returns:
        ``(z, y, x)``, normalised.
    """
    share_key, noise_key = jax.random.split(key)
    share = jax.random.uniform(share_key, maxval=MOST_NOISE)
    white = jax.random.normal(noise_key, volume.shape)
    coloured = match_power(white, jnp.ones_like(target_power), target_power)
    matched = match_power(volume, power, target_power)
    mixed = jnp.sqrt(1 - share) * standardize(matched) + jnp.sqrt(share) * standardize(coloured)
    return standardize(mixed)


def denoise(view: View, volumes: jax.Array) -> jax.Array:
    """Particles without much of their noise, normalised."""
    config = view.config
    sigmas = {"sigma_space": config.sigma_space, "sigma_range": config.sigma_range}
    filters: dict[str, Callable[[jax.Array], jax.Array]] = {
        "ngm": lambda volume: volume - highpass(volume, fraction=config.kept),
        "bilateral": functools.partial(bilateral, **sigmas),
        "gradient-bilateral": functools.partial(gradient_bilateral, **sigmas),
    }
    smooth = filters[config.denoiser]
    return view.each(lambda volume: standardize(smooth(volume)), volumes)


def entropy_map(logits: jax.Array) -> jax.Array:
    """``-p log p`` of each class, ``(batch, z, y, x, k)``."""
    log = jax.nn.log_softmax(logits)
    return -jnp.exp(log) * log


METHODS: Mapping[str, Method] = {
    "source-only": _source_only,
    "supervised": _source_only,  # of the target, which then is the source
    "dann": _dann,
    "pdam": _pdam,
    "asc": _asc,
    "le-uda": _le_uda,
    "vox-uda": _vox_uda,
}
JUDGES: Mapping[str, tuple[str, ...]] = {
    "dann": ("features",),
    "pdam": ("features", "masks"),
    "le-uda": ("doubt",),
    "vox-uda": ("features",),
}


def build_optimizer(config: SegmentConfig, steps_per_epoch: int) -> Optimizer:
    """Adam whose learning rate drops by steps."""
    schedule = optax.exponential_decay(
        config.learning_rate,
        config.epochs_per_drop * steps_per_epoch,
        config.learning_rate_decay,
        staircase=True,
    )
    return adam(schedule)
