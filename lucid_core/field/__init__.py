"""A radiance field (NeRF, Mildenhall et al. 2020) on a voxel grid: the second representation."""
