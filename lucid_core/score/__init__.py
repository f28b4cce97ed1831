"""Numbers about a finished splat: what a diffusion model says about its views, and measures without a
model.
"""
