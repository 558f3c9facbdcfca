"""Particles with classes, of which nothing else need be known."""

import dataclasses
from typing import Any

from jimjax.data.columns import labels_of
from jimjax.data.subtomograms import Subtomograms, load, table_of
from jimjax.io import star
from jimjax.io.files import PathLike


def load_labelled(star_path: PathLike, **options: Any) -> Subtomograms:
    """Reads particles and their classes, rlnClassNumber; poses are neither needed nor read.

    Args:
        star_path: RELION particle STAR file.
        **options: of ``data.subtomograms.load``.

    Raises:
        InputError: if anything does not fit; the first mistake found, as one sentence.
    """
    labels_of(star.read_particles(star_path))  # before anything large is read
    particles = load(star_path, **options)
    return dataclasses.replace(particles, labels=labels_of(table_of(particles, star_path)))
