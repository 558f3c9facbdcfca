"""Which voxels belong to what: networks that segment particles."""
