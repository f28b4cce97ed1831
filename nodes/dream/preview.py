"""Preview images of the splat on the node during a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ...lucid_core.cameras import Cameras, SizedCameras, turntable
from ...lucid_core.optimize.loop import Step
from ...lucid_core.optimize.selection import join_splats
from ...lucid_core.optimize.views import PosedImages, ViewFit
from ...lucid_core.rasterize import Renderer, to_device
from ...lucid_core.splats import Splats

TIME_SHARE = 0.03  # largest share of the run time that previews may take
SIZE = 256  # pixels
DrawView = Callable[[Splats, int, Renderer], Tensor]


class Preview:
    """Renders a preview every `seconds`, or less often to take at most TIME_SHARE of the run time.

    seconds: 0 = no preview before the end. with_x0: also show the x0 prediction of the model for one view.
    fixed: Gaussians that are not optimised but shown, in the frame of the cameras; None = none. draw_view:
    renders the preview with the given number; None = `turned_view`.
    """

    def __init__(
        self,
        seconds: float,
        with_x0: bool,
        fixed: Splats | None,
        renderer: Renderer,
        draw_view: DrawView | None = None,
    ) -> None:
        self.draw_view = draw_view or turned_view
        self.seconds, self.with_x0, self.fixed, self.renderer = seconds or math.inf, with_x0, fixed, renderer
        self._pause, self._last = self.seconds, -math.inf
        self._spent: list[float] = []  # seconds that each preview took

    def is_due(self) -> bool:
        """Whether it is time for the next preview."""
        return time.monotonic() - self._last > self._pause

    def draw(self, step: Step) -> Tensor:
        """Render the preview (SIZE, SIZE, 3), on the CPU; (SIZE, 2 * SIZE, 3) with the x0 prediction.

        Another `draw_view` may give another size.
        """
        begun = time.monotonic()
        image = self.draw_view(join_splats(step.result, self.fixed), len(self._spent), self.renderer)
        x0 = step.x0_preview() if self.with_x0 else None
        if x0 is not None:
            x0 = torch.nn.functional.interpolate(x0.cpu().movedim(-1, 0)[None], image.shape[:2], mode="area")
            image = torch.cat([image, x0[0].movedim(0, -1)], dim=1)
        self._last = time.monotonic()
        if self._spent:  # not the first preview, which compiles kernels and loads the VAE
            self._pause = max(self.seconds, (self._last - begun) / TIME_SHARE)
        self._spent.append(self._last - begun)
        return image

    def seconds_spent(self) -> float:
        """Seconds spent on previews.

        Excludes the first one, which compiles kernels, and the last one, which is always drawn.
        """
        return sum(self._spent[1:-1])


def turned_view(splats: Splats, picture: int, renderer: Renderer) -> Tensor:
    """Render (SIZE, SIZE, 3) on white, on the CPU. The camera advances by 10 degrees per `picture`."""
    around = turntable(36, 15.0, 5.3, 26.0, SIZE, SIZE)
    camera = to_device(Cameras(around.viewmats[picture % 36][None], around.Ks[:1]), splats.means.device)
    with torch.no_grad():
        return renderer(splats, camera, SIZE, SIZE, background=splats.means.new_ones(3)).rgb[0].cpu()


def beside_pictures(shots: PosedImages, fit: ViewFit) -> DrawView:
    """Renders of one view of `shots` after the other, each on the left of its picture, SIZE pixels high."""
    height, width = shots.images.shape[1:3]
    sized = SizedCameras(shots.cameras, width, height)
    size = max(round(width * SIZE / height), 1), SIZE

    def draw(splats: Splats, number: int, renderer: Renderer) -> Tensor:
        row = torch.tensor([number % len(shots)])
        one, device = shots.select(row).prepare(fit), splats.means.device
        camera = to_device(sized.scale_to(*size).map(lambda x: x[row]), device)
        background = torch.tensor(fit.background, device=device)
        with torch.no_grad():
            image = renderer(splats, camera, *size, background=background).rgb[0].cpu()
        picture = torch.nn.functional.interpolate(one.images.movedim(-1, 1), (size[1], size[0]), mode="area")
        return torch.cat([image, picture[0].movedim(0, -1)], dim=1)

    return draw
