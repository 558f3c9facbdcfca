"""Classes of particles: networks that describe them, and mixtures of what they say."""
