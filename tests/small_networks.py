"""A Jim-Net and a UMTL small enough to build in a test."""

import dataclasses
from typing import Any

from jimjax.models.blocks import ExtractorConfig
from jimjax.models.jimnet import JimNetConfig
from jimjax.models.umtl import TASKS, Task, UMTLConfig

STAGE = ExtractorConfig(
    widths=(3,),
    sizes=(7, 5),
    keeps=(7, 5),
    num_features=4,
    kernel="isotropic",
    pools=("max", "mean", "std"),
)


def steerable(
    box: int, num_classes: int, *, stage: ExtractorConfig = STAGE, **changes: Any
) -> JimNetConfig:
    """Its configuration; both stages are alike."""
    config = JimNetConfig(
        box=box,
        num_classes=num_classes,
        coarse=stage,
        fine=stage,
        regressor="steerable",
        local_radius=1,
        embedding=4,
        degree=2,
        num_rotations=64,
    )
    return dataclasses.replace(config, **changes)


def umtl(box: int, num_classes: int, tasks: tuple[Task, ...] = TASKS, **changes: Any) -> UMTLConfig:
    """The configuration of a UMTL; both stages are alike."""
    config = UMTLConfig(
        box=box,
        num_classes=num_classes,
        coarse=STAGE,
        fine=STAGE,
        tasks=tasks,
        regressor="steerable",
        regressor_width=4,
        local_radius=1,
        embedding=4,
        degree=2,
        num_rotations=64,
        mask_size=8,
        mask_width=3,
    )
    return dataclasses.replace(config, **changes)
