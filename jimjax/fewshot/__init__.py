"""Classes that are known by a few labelled particles each."""
