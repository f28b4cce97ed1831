"""For a fork server to preload: it renders once, so that its children have the kernels."""

import torch

from lucid_core.cameras import turntable
from lucid_core.rasterize import rasterize
from lucid_core.starts.shapes import PointCloud

torch.set_num_threads(1)
splats = PointCloud(count=50).splats(0).map(lambda x: x.requires_grad_())
render = rasterize(splats, turntable(1, 0.0, 3.0, 50.0, 32, 32), 32, 32, backend="numba")
(render.rgb.sum() + render.depth.sum()).backward()
