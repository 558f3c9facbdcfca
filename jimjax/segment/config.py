"""How a segmentation network is carried from simulated particles to others."""

from dataclasses import dataclass, replace
from typing import Literal

from jimjax.io.errors import InputError
from jimjax.models.compute import PLAIN, Compute
from jimjax.models.weights import Contrast

Method = Literal["source-only", "supervised", "dann", "pdam", "asc", "le-uda", "vox-uda"]
Noise = Literal["gaussian", "poisson", "speckle", "none"]
Denoiser = Literal["ngm", "bilateral", "gradient-bilateral", "none"]
NUM_TAPS = 4  # of a VoxResNet, whose features are kept alike


@dataclass(frozen=True)
class SegmentConfig:
    """How a segmenter is trained; the defaults are those of Vox-UDA where it gives them.

    Ours are, in all methods that look at the target, batch statistics of each domain apart, and in
    Vox-UDA what counts as a sure pseudo-label (``losses.pseudo_loss``) and ``ramp_epochs``.

    Attributes:
        method: "source-only": nothing of the target is looked at; "supervised": the target's own
            masks; "dann", "pdam": features, or features and masks, that tell no domain; "asc",
            "le-uda": appearances exchanged, and a teacher that is an average of students;
            "vox-uda": noise of the target, and pseudo-labels of particles without it.
        preset: sizes of the network, see ``models.voxresnet``.
        contrast: of the protein in all particles, "dark" or "light".
        epochs: of as many steps as batches cover the source (supervised: the target).
        batch_size: particles of each domain in a step.
        learning_rate: of Adam.
        learning_rate_decay: what it is multiplied with at each drop.
        epochs_per_drop: between two drops.
        noise: Vox-UDA: kind of the noise that source particles are given; "none" leaves out the
            noise generation module.
        match_spectrum: Vox-UDA: source particles are first given the target's radial power, and
            noise of it in place of a random share of theirs. Ours, not published: for noise of
            another colour and another contrast transfer.
        num_sampled: Vox-UDA: particles of the target that the noise is estimated from.
        kept: Vox-UDA: share of the Fourier coefficients, the highest, that count as noise.
        variance_order: Vox-UDA: "average-first", as published, or "mean-of-variances"; see
            ``ops.noise``.
        consistency: Vox-UDA: weights of the features' likeness, shallow to deep.
        denoiser: Vox-UDA: what pseudo-labels are made of; "none" makes no pseudo-labels.
        confidence: Vox-UDA: probability from which a voxel's pseudo-label counts.
        sigma_space: of the bilateral filters, voxels.
        sigma_range: of the bilateral filters, in units of a standardised volume, or of its
            gradient.
        ema_decay: of the teacher.
        band: ASC and LE-UDA: half width of the band of exchanged amplitudes, share of the box.
        consistency_weight: ASC and LE-UDA: of student and teacher agreeing.
        ramp_epochs: until what a teacher says counts in full; from nearly nothing at first.
        adversarial: weight of what the discriminators say.
        seed: of all that is random.
        compute: precision, and whether memory is saved; see there.
    """

    method: Method = "vox-uda"
    preset: Literal["small", "paper"] = "paper"
    contrast: Contrast = "dark"
    epochs: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-3
    learning_rate_decay: float = 0.1
    epochs_per_drop: int = 100
    noise: Noise = "gaussian"
    match_spectrum: bool = False
    num_sampled: int = 10
    kept: float = 0.244
    variance_order: Literal["average-first", "mean-of-variances"] = "average-first"
    consistency: tuple[float, ...] = (0.2, 0.2, 0.3, 0.3)
    denoiser: Denoiser = "gradient-bilateral"
    confidence: float = 0.85
    sigma_space: float = 120.0
    sigma_range: float = 1.2
    ema_decay: float = 0.999
    band: float = 0.25
    consistency_weight: float = 200.0
    ramp_epochs: int = 100
    adversarial: float = 1.0
    seed: int = 0
    compute: Compute = PLAIN

    def __post_init__(self) -> None:
        """Refuses what cannot be done."""
        if min(self.epochs, self.batch_size, self.epochs_per_drop, self.num_sampled) < 1:
            raise InputError("epochs, batch_size, epochs_per_drop and num_sampled begin with 1")
        if not self.ramp_epochs >= 1:
            raise InputError(f"ramp_epochs begin with 1, got {self.ramp_epochs}")
        for name in ("kept", "band"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"confidence must be 0.5 or more and below 1, got {self.confidence}")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay must be from 0 to below 1, got {self.ema_decay}")
        if not min(self.learning_rate, self.sigma_space, self.sigma_range) > 0:
            raise InputError("learning_rate, sigma_space and sigma_range must be above 0")
        if len(self.consistency) != NUM_TAPS or min(self.consistency) < 0:
            raise InputError(f"consistency needs {NUM_TAPS} weights, 0 or more")
        if min(self.adversarial, self.consistency_weight, self.learning_rate_decay) < 0:
            raise InputError(
                "adversarial, consistency_weight and learning_rate_decay must be 0 or more"
            )

    @property
    def has_teacher(self) -> bool:
        """Whether an average of students is kept."""
        makes_labels = self.method == "vox-uda" and self.denoiser != "none"
        return makes_labels or self.method in ("asc", "le-uda")


def small() -> SegmentConfig:
    """For the small network and a few hundred particles."""
    return SegmentConfig(
        preset="small",
        epochs=4,
        batch_size=4,
        epochs_per_drop=3,
        match_spectrum=True,
        ema_decay=0.98,
        consistency_weight=2.0,  # 200, grown in so few epochs, lets nothing be found at all
        ramp_epochs=3,
    )


def short(epochs: int) -> SegmentConfig:
    """As published, in fewer epochs; drops of the learning rate and the ramp are in proportion.

    The teacher's memory and weight are the small preset's, which has as few steps.

    Args:
        epochs: 1 or more.
    """
    published, taught = SegmentConfig(), small()
    share = epochs / published.epochs
    return replace(
        published,
        epochs=epochs,
        epochs_per_drop=max(1, round(share * published.epochs_per_drop)),
        ramp_epochs=max(1, round(share * published.ramp_epochs)),
        ema_decay=taught.ema_decay,
        consistency_weight=taught.consistency_weight,
    )
