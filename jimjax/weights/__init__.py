"""Weights that come with the package; README.md says how they were made and how good they are."""
