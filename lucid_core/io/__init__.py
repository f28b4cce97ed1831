"""Files: splats and points as .ply and .npz, pictures and videos."""
