"""A ProtoNet small enough to train in a test."""

import functools

from jimjax.models.protonet import ProtoNetConfig

BOX = 12
SIZES = functools.partial(
    ProtoNetConfig,
    size=8,
    widths=(4, 6),
    num_halvings=1,
    kernel="isotropic",
    pools=("max", "mean", "std"),
    dense_width=4,
)
