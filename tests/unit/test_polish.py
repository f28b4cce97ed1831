"""The polish of a texture, with a prior that knows what every view should show."""

from dataclasses import dataclass, replace

import pytest
import torch
from raising import raises

from lucid_core.bake.fill import nearest_texels
from lucid_core.bake.shade import shade
from lucid_core.bake.surface import texels_of, unwrap
from lucid_core.cameras import CameraRanges, orbit
from lucid_core.diffusion.prior import Conds
from lucid_core.errors import BadInput, BadSetting, NotFinite
from lucid_core.frames import Frame
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.mixing import GuidanceSource
from lucid_core.guidance.sds import SDS
from lucid_core.optimize.polish import Polish, polish
from lucid_core.starts.mesh import Mesh

from .priors import GaussianPrior
from .scenes import SmallMemory, prompts_of_a_disc
from .test_bake import sphere

SIZE, RADIUS, FOVY_DEG = 64, 5.3, 26.0
TARGETS = ImageTargets(views=8, fits=30, kept=16)
CONFIG = Polish(steps=60, views=4, resolution=SIZE, rate=0.05)
GREY = torch.tensor(0.5)


def ranges(**changes):
    distance = {name: RADIUS for name in ("radius_min", "radius_max", "radius_min_end", "radius_max_end")}
    fovy = {f"fovy_{name}_deg": FOVY_DEG for name in ("min", "max", "min_end", "max_end")}
    still = dict.fromkeys(("jitter_center", "jitter_target", "jitter_up"), 0.0)
    return CameraRanges(**distance, **fovy, **still, **changes)


ALL_ROUND = ranges(elevation_min_deg=-80.0, elevation_max_deg=80.0)


@pytest.fixture(scope="module")
def truth() -> Mesh:
    """A ball away from the origin, whose colours are its normals."""
    mesh = unwrap(sphere(), SIZE)
    texels = texels_of(mesh, SIZE)
    texture = (0.5 + 0.4 * texels.normals)[nearest_texels(texels.index, SIZE, SIZE)]
    vertices = 3 * mesh.vertices + torch.tensor([5.0, -2.0, 1.0])
    return replace(mesh, vertices=vertices, texture=texture.reshape(SIZE, SIZE, 3))


def grey(mesh):
    return replace(mesh, texture=GREY.expand(SIZE, SIZE, 3))


@dataclass(frozen=True)
class Truth:
    """Prompts whose conditioning is the true picture of each view, which GaussianPrior takes as the mean."""

    mesh: Mesh
    hints: tuple = ()

    def at(self, prior, azimuth_rad, elevation_rad):
        full = torch.ones(len(azimuth_rad))
        cameras = orbit(azimuth_rad, elevation_rad, RADIUS * full, FOVY_DEG * full.deg2rad(), SIZE, SIZE)
        vertices = Frame.of_points(self.mesh.vertices).enter_points(self.mesh.vertices)
        mesh, pictures = replace(self.mesh, vertices=vertices), []
        for row in torch.arange(len(cameras)).split(1):
            rgb, alpha = shade(mesh, cameras.map(lambda x, row=row: x[row]), SIZE, SIZE)
            pictures.append(rgb + 1 - alpha)
        mean = torch.stack(pictures).movedim(-1, 1)
        return Conds(mean, mean, mean)


def run(mesh, truth, cameras=None, config=CONFIG, seed=0, targets=TARGETS):
    source = GuidanceSource(GaussianPrior(), targets, Truth(truth))
    return list(polish(mesh, source, cameras or ALL_ROUND, config, seed, "numba"))


def error(mesh, truth, rows=slice(None)):
    index = texels_of(truth, SIZE).index[rows]
    return (mesh.texture - truth.texture).reshape(-1, 3)[index].abs().mean()


def test_the_texture_approaches_the_truth_and_the_shape_stays(truth):
    start = grey(truth)
    steps = run(start, truth)
    end = steps[-1].mesh()
    assert [step.step for step in steps] == list(range(1, CONFIG.steps + 1))
    assert error(end, truth) < 0.03 * error(start, truth)
    assert steps[-1].loss < 0.03 * steps[0].loss
    for name in ("vertices", "faces", "uvs"):
        torch.testing.assert_close(getattr(end, name), getattr(start, name), atol=0, rtol=0)


def test_the_same_seed_gives_the_same_texture(truth):
    few = replace(CONFIG, steps=4)
    a, b, c = (run(grey(truth), truth, config=few, seed=seed)[-1].mesh().texture for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_texels_that_no_view_sees_stay(truth):
    """Seen from the front alone: the back faces +z."""
    front = ranges(azimuth_min_deg=-10, azimuth_max_deg=10, elevation_min_deg=-10, elevation_max_deg=10)
    front = replace(front, angle_factor=1.0, elevation_min_end_deg=-10.0, elevation_max_end_deg=10.0)
    end = run(grey(truth), truth, front, replace(CONFIG, steps=30))[-1].mesh()
    normals, index = texels_of(truth, SIZE).normals, texels_of(truth, SIZE).index
    back, facing = normals[:, 2] > 0.5, normals[:, 2] < -0.7
    assert back.sum() > 100
    assert (end.texture.reshape(-1, 3)[index[back]] == GREY).all()
    assert error(end, truth, facing) < 0.3 * error(grey(truth), truth, facing)


def test_a_small_memory_gives_the_same_texture(truth):
    plain, halved = SmallMemory(), SmallMemory(views=3)
    few, prompts = replace(CONFIG, steps=2), prompts_of_a_disc()
    sources = [GuidanceSource(prior, TARGETS, prompts) for prior in (plain, halved)]
    ends = [list(polish(grey(truth), source, ranges(), few, 0, "numba"))[-1] for source in sources]
    torch.testing.assert_close(*(end.mesh().texture for end in ends))
    assert max(plain.seen) == TARGETS.views and max(halved.seen) <= 3


def test_bad_input_is_refused(truth):
    with raises(BadInput, name="the mesh"):
        run(replace(truth, texture=None), truth)
    with raises(BadInput, name="the mesh's uvs"):
        run(replace(truth, uvs=2 * truth.uvs), truth)
    with raises(BadSetting, name="the mesh"):
        run(replace(truth, faces=truth.faces[:0]), truth)
    with raises(BadSetting, name="resolution"):
        Polish(resolution=100)
    with pytest.raises(TypeError):
        run(truth, truth, targets=SDS())
    with raises(NotFinite):
        run(truth, replace(truth, texture=truth.texture * torch.nan))
