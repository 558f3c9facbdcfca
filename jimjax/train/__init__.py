"""Training: one loop for every task, sharded over the devices of one mesh axis."""
