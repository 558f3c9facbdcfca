"""Pure, differentiable operations on volumes; imports jax and numpy only."""
