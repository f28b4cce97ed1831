"""Guidance of the rendered views: ISM, its baselines, image targets, and mixes of two sources."""
