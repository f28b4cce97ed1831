"""The method: Interval Score Matching on 3D Gaussians. Knows torch and numpy, never the host or its nodes."""
