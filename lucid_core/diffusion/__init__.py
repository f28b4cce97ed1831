"""Diffusion models: the Prior interface, the VAE encoder's gradient, and batches limited by memory."""
