"""Test molecules, simulated data, and the particles of an experiment in memory."""
