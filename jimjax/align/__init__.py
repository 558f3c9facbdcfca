"""Classes, poses and averages of particles: the joint EM, and what trained networks say."""
