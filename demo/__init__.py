"""The demo: a small procedural world, a diffusion prior that knows it, and a score of splats against its
truth.
"""
