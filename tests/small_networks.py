"""A Jim-Net small enough to build in a test."""

import dataclasses
from typing import Any

from jimjax.models.blocks import ExtractorConfig
from jimjax.models.jimnet import JimNetConfig

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
