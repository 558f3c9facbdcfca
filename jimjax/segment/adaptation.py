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

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jimjax.models.functional import Network
from jimjax.models.voxresnet import Segmented
from jimjax.ops import noise
from jimjax.ops.bilateral_filters import bilateral, gradient_bilateral
from jimjax.ops.correlation import standardize
from jimjax.ops.spectrum import highpass, match_power, radial_power
from jimjax.segment import losses
from jimjax.segment.config import SegmentConfig
from jimjax.segment.cut_mix import cut_mix_box
from jimjax.segment.view import Batch, Parts, Teacher, View, average
from jimjax.train.state import Optimizer, adam
from jimjax.train.step import LossFunction, LossResult

MOST_NOISE = 0.95  # of a source particle's variance, replaced by noise of the target's colour
TASK_WEIGHTS = 0.5, 1.5  # least and most that a source particle counts in PDAM
WITHIN_NOISE = 0.1  # deviation of the noise that the teacher of LE-UDA sees the target with

Terms = dict[str, jax.Array]


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
        terms["pseudo"] = view.ramp() * losses.pseudo_loss(
            target.logits, told, share, config.confidence
        )
    return terms


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
