"""Poses and classes of particles from a trained network."""
