"""Optimisation of a splat: settings, loop, state, densification, checkpoints."""
