"""Figures of the accelerators under a worker: which they are, how they fare, and who else is on them."""
