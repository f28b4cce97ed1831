"""For a fork server to preload: it runs what is slow at first use, so that its children start fast."""

import torch

from lucid_core.cameras import turntable
from lucid_core.rasterize import rasterize
from lucid_core.splats import activate, parameters
from lucid_core.starts.shapes import PointCloud

torch.set_num_threads(1)
params = parameters(PointCloud(count=50).splats(0))
render = rasterize(activate(params), turntable(1, 0.0, 3.0, 50.0, 32, 32), 32, 32, backend="numba")
(render.rgb.sum() + render.depth.sum()).backward()
torch.optim.Adam([param for param in params.values() if param.grad is not None]).step()
