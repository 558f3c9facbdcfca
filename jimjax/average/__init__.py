"""Class averages, half maps and their resolution."""

from jimjax.average.class_average import (
    ClassAverage,
    FourierSum,
    add_sums,
    average_class,
    correlate_half_maps,
    divide_sum,
    soft_sphere,
    sum_particles,
)
from jimjax.average.outputs import average_classes, fsc_frequencies, write_averages

__all__ = [
    "ClassAverage",
    "FourierSum",
    "add_sums",
    "average_class",
    "average_classes",
    "correlate_half_maps",
    "divide_sum",
    "fsc_frequencies",
    "soft_sphere",
    "sum_particles",
    "write_averages",
]
