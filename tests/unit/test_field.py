"""The radiance field: closed forms, the kernels against torch, the surface, and runs with each guidance."""

import math
from dataclasses import replace

import pytest
import torch
from raising import raises
from same import same

from benchmarks.views import FIT, pictures_of
from lucid_core.cameras import Cameras, orbit, turntable
from lucid_core.errors import BadFile, BadInput, BadSetting, OtherRun
from lucid_core.field import march
from lucid_core.field import render as rendering
from lucid_core.field.grid import DENSITY, Field, FieldStart, enlarge, require_memory
from lucid_core.field.surface import Surface, colors_at, find_surface, to_mesh, to_splats
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.mixing import GuidanceSource
from lucid_core.optimize.checkpoint import FIELD, checkpoint_of_field, read, require_same, settings_of, write
from lucid_core.optimize.radiance import FieldConfig, Radiance, distil_field, fit_field, orientation
from lucid_core.optimize.views import PRESETS as FITS
from lucid_core.rasterize import rasterize
from lucid_core.settings import replace_settings

from .scenes import CAMERAS, CONFIG, METHOD, WishPrior, prompts_of_a_disc
from .scenes import run as run_splats

BALL = FieldStart(resolution=32, size=1.2, extent=2.0, fill=5.0, color=(0.8, 0.3, 0.1))
SETTINGS = FieldConfig(lr_density=(0.3, 0.05), lr_color=(0.3, 0.05), entropy_weight=0.0, opaque_weight=0.0)


def front(size=1, distance=5.0):
    one = torch.ones(1)
    return orbit(0 * one, 0 * one, distance * one, math.radians(20) * one, size, size)


def random_field(resolution=12, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    grid = torch.randn(4, resolution, resolution, resolution, generator=g, dtype=dtype)
    return Field(grid - torch.tensor([1.0, 0, 0, 0], dtype=dtype)[:, None, None, None], 2.0)


def as_double(cameras):
    return Cameras(cameras.viewmats.double(), cameras.Ks.double())


def test_a_uniform_cube_has_the_closed_form_of_absorption():
    raw, side = -1.0, 2.0
    grid = torch.full((4, 9, 9, 9), raw, dtype=torch.float64)
    grid[1:] = torch.tensor([0.5, -0.5, 2.0], dtype=torch.float64)[:, None, None, None]
    background = torch.tensor([0.1, 0.9, 0.4], dtype=torch.float64)
    seen = rendering.render(Field(grid, side), as_double(front()), 1, 1, background)
    sigma = DENSITY * math.log1p(math.exp(raw))
    step = side / 8
    lit = min(8, math.ceil(-math.log(rendering.DARK) / (sigma * step)))  # samples before it is dark
    alpha = 1 - math.exp(-sigma * step * lit)
    color = torch.tensor([0.5, -0.5, 2.0], dtype=torch.float64).sigmoid()
    assert torch.allclose(seen.alpha.flatten(), torch.tensor([alpha], dtype=torch.float64))
    assert torch.allclose(seen.rgb.flatten(), alpha * color + (1 - alpha) * background)
    weights = [math.exp(-sigma * step * i) * (1 - math.exp(-sigma * step)) for i in range(lit)]
    depth = sum(w * (4 + (i + 0.5) * step) for i, w in enumerate(weights))
    assert float(seen.depth) == pytest.approx(depth)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernels_agree_with_torch(threads, set_threads, monkeypatch):
    field, cameras = random_field(), turntable(3, 20.0, 4.0, 40.0, 17, 13)
    found = {}
    set_threads(threads)
    monkeypatch.setattr(march, "RAYS_PER_JOB", 100)
    for name in ("kernels", "torch"):
        if name == "torch":
            monkeypatch.setattr(rendering, "has_kernels", lambda field: False)
        grid = field.grid.clone().requires_grad_()
        seen = rendering.render(
            replace(field, grid=grid), cameras, 17, 13, torch.ones(3), torch.Generator().manual_seed(1)
        )
        weights = torch.Generator().manual_seed(2)
        images = (seen.rgb, seen.alpha, seen.depth)
        sum((x * torch.randn(x.shape, generator=weights)).sum() for x in images).backward()
        found[name] = torch.cat(images, -1).detach(), grid.grad
    for ours, truth in zip(*found.values(), strict=True):
        # a sample at the edge of a cell or of the dark may be taken by one alone
        assert (ours - truth).norm() < 1e-3 * truth.norm()


def test_gradients_are_those_of_the_image():
    field = random_field(4, dtype=torch.float64)
    cameras = as_double(front(2, 3.0))

    def image(grid):
        seen = rendering.render(Field(grid, 2.0), cameras, 2, 2)
        return torch.cat([seen.rgb, seen.alpha, seen.depth], -1)

    grid = (field.grid - torch.tensor([3.0, 0, 0, 0]).double()[:, None, None, None]).requires_grad_()
    assert torch.autograd.gradcheck(image, grid, eps=1e-6, atol=1e-6)


def test_grids_are_enlarged_as_by_torch():
    grid = torch.randn(4, 5, 5, 5, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(grid[None], (13,) * 3, mode="trilinear", align_corners=True)
    assert torch.allclose(enlarge(grid, 13), expected[0])


@pytest.mark.parametrize("shape", ["ball", "box", "cylinder"])
def test_a_start_is_dense_inside_of_its_shape_alone(shape):
    field = FieldStart(shape=shape, size=1.0, extent=2.0, resolution=33, fill=2.0).field()
    at = field.vertices()
    inside = {
        "ball": at.norm(dim=-1) < 0.5,
        "box": at.abs().amax(-1) < 0.5,
        "cylinder": (at[..., ::2].norm(dim=-1) < 0.5) & (at[..., 1].abs() < 0.5),
    }[shape]
    assert (field.grid[0][inside] > 0).all() and (field.grid[0][~inside] <= 1e-5).all()
    assert field.grid[0].max() == 2.0


def test_bad_starts_are_refused():
    with raises(BadSetting, name="size", value=3.0):
        FieldStart(size=3.0)
    with raises(BadSetting, name="resolution", value=4):
        FieldStart(resolution=4)


def test_too_large_a_field_is_told_the_size_that_fits():
    require_memory(64, 10**9)
    with raises(BadSetting, name="resolution", value=256) as caught:
        require_memory(256, 10**9)
    fits = int(caught.value.allowed.split()[2].rstrip(":"))
    require_memory(fits, 10**9)
    with raises(BadSetting, name="resolution"):
        require_memory(fits + 8, 10**9)


# ---- the surface


def is_closed(mesh):
    """Whether each edge has two faces."""
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    return bool((edges.sort(1).values.unique(dim=0, return_counts=True)[1] == 2).all())


def test_the_surface_of_a_ball_is_closed_and_has_its_volume_and_colour():
    skin = find_surface(BALL.field(), Surface(cells=48))
    radius = skin.points.norm(dim=-1)
    assert float(radius.max() - radius.min()) < 0.1 * skin.cell + 0.01
    assert ((skin.normals * skin.points).sum(-1) / radius > 0.98).all()
    assert torch.allclose(skin.colors, torch.tensor([0.8, 0.3, 0.1]).expand_as(skin.colors), atol=1e-4)
    mesh = to_mesh(skin)
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    volume = (a * torch.linalg.cross(b, c)).sum() / 6  # positive: the faces look outwards
    assert float(volume) == pytest.approx(4 / 3 * math.pi * float(radius.mean()) ** 3, rel=0.02)
    assert is_closed(mesh)


@pytest.mark.parametrize("speck, most", [(False, 0.02), (True, 1.0)])
def test_the_density_behind_the_visible_shell_does_not_dent_the_surface(speck, most):
    """Hollows and pits that a few dense voxels cover, as optimised fields have them. A speck is removed; in
    the views that it covers it hides a little of the surface. most: distance in cells."""
    field = replace(BALL, resolution=48, fill=100.0).field()
    at = field.vertices()
    radius = at.norm(dim=-1)
    grid = field.grid.clone()
    noise = torch.randn(radius.shape, generator=torch.Generator().manual_seed(0))
    grid[0] = torch.where(radius < 0.8 * BALL.size / 2, 20 * noise, grid[0])
    if speck:
        grid[0][(at - torch.tensor([0.8, 0.8, 0.8])).norm(dim=-1) < 0.06] = 5
    found, plain = (find_surface(replace(field, grid=x), Surface(cells=47)) for x in (grid, field.grid))
    far = torch.cdist(found.points, plain.points).amin(1)
    assert len(found.points) == pytest.approx(len(plain.points), rel=0.02)
    assert float(far.max()) < most * found.cell and float(far.mean()) < 0.02 * found.cell


def test_smoothing_takes_the_noise_of_voxels():
    grid = replace(BALL, resolution=48, fill=100.0).field().grid
    noise = torch.randn(grid.shape[1:], generator=torch.Generator().manual_seed(0))
    field = Field(torch.cat([(grid[0] + 5 * noise)[None], grid[1:]]), BALL.extent)
    spread = []
    for smoothing in (0, 1, 2):
        skin = find_surface(field, Surface(cells=47, smoothing=smoothing))
        spread.append(float(skin.points.norm(dim=-1).std()))
    assert spread[2] < spread[1] < 0.7 * spread[0]


def test_the_splat_of_a_field_looks_like_the_field():
    field, cameras = replace(BALL, fill=100.0).field(), turntable(2, 20.0, 5.0, 26.0, 96, 96)
    skin = find_surface(field, Surface(cells=48))
    expected = rendering.render(field, cameras, 96, 96, torch.ones(3))
    seen = rasterize(to_splats(skin), cameras, 96, 96, background=torch.ones(3))
    assert (seen.rgb - expected.rgb).square().mean() < 10**-2.5
    solid, true = seen.alpha > 0.5, expected.alpha > 0.5
    assert (solid & true).sum() > 0.95 * (solid | true).sum()


def test_a_field_without_a_surface_says_what_helps():
    with raises(BadInput, name="field") as caught:
        find_surface(Field(torch.full((4, 32, 32, 32), -6.0), 2.4), Surface(cells=16))
    assert "lower min_opacity" in caught.value.problem
    wall = torch.full((4, 80, 80, 80), -15.0)
    wall[0, :, :, 41] = 20.0
    with raises(BadInput, name="field") as caught:
        find_surface(Field(wall, 2.4), Surface(cells=16))
    assert "raise cells" in caught.value.problem


@pytest.mark.parametrize("smoothing", [1.0, 3.0, 8.0])
def test_matter_at_the_border_of_the_cube_is_closed_there(smoothing):
    box = FieldStart(shape="box", size=2.0, extent=2.0, resolution=32, fill=20.0).field()
    skin = find_surface(box, Surface(cells=48, smoothing=smoothing))
    assert is_closed(to_mesh(skin)) and skin.points.abs().max() < 1.0 + skin.cell


def test_points_above_empty_space_have_a_colour_too():
    field = BALL.field()
    empty = Field(torch.cat([torch.full_like(field.grid[:1], -60.0), field.grid[1:]]), field.extent)
    found = colors_at(empty, torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
    assert torch.allclose(found, torch.tensor([BALL.color]), atol=1e-4)


# ---- runs


def dream(config=CONFIG, settings=SETTINGS, steps=12, method=METHOD, start=BALL, resume=None, seed=0):
    source = GuidanceSource(WishPrior(), method, prompts_of_a_disc())
    config = replace_settings(config, steps=steps)
    return list(distil_field(start.field(), source, CAMERAS, config, settings, seed, "numba", resume))


def test_a_field_becomes_what_the_model_wishes():
    last = dream(steps=40)[-1]
    seen = rendering.render(last.result, turntable(2, 0.0, 5.3, 26.0, 32, 32), 32, 32, torch.ones(3))
    middle = seen.rgb[:, 14:18, 14:18].mean((0, 1, 2))
    assert (middle - torch.tensor([0.9, 0.2, 0.1])).abs().max() < 0.1
    assert seen.alpha[:, :4, :4].max() < 0.05
    assert set(last.losses) == {"gradient norm", "tv", "entropy"} and last.progress == 1


def test_image_targets_fit_a_field():
    """On darker backgrounds than a splat, whose darkest is 0.7."""
    method = ImageTargets(views=12, fits=5, kept=24, sampling_steps=1, inversion_steps=1)
    steps = dream(replace_settings(CONFIG, background_share=1.0), steps=15, method=method)
    assert steps[-1].losses["pixels"] < steps[0].losses["pixels"]
    assert 0.4 <= steps[-1].checkpoint().tensors["replay.backgrounds"].min() < 0.6


def test_the_losses_of_the_shape_are_reported_with_their_weights():
    weights = {"sparsity_weight": 2.0, "orient_weight": 3.0, "entropy_weight": 4.0}
    plain, weighted = (dream(settings=s, steps=1)[0] for s in (SETTINGS, replace(SETTINGS, **weights)))
    assert plain.losses["entropy"] == 0 and weighted.losses["entropy"] > 0
    assert {"sparsity", "orient"} == set(weighted.losses) - set(plain.losses)


def test_the_front_of_a_ball_does_not_face_away():
    field, cameras = BALL.field(), front(32)
    seen = rendering.render(field, cameras, 32, 32)
    assert float(orientation(field, seen, cameras)) < 1e-4
    hollow = Field(-field.grid, field.extent)  # denser outside: seen from within the cube its walls face away
    assert float(orientation(hollow, seen, cameras)) > 0.1


@pytest.mark.parametrize("frozen, kept", [("freeze_geometry", slice(0, 1)), ("freeze_color", slice(1, 4))])
def test_a_locked_part_does_not_change(frozen, kept):
    last = dream(replace_settings(CONFIG, **{frozen: True}), steps=3)[-1]
    assert torch.equal(last.result.grid[kept], BALL.field().grid[kept])
    assert not torch.equal(last.result.grid, BALL.field().grid)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    whole = dream()
    source = GuidanceSource(WishPrior(), METHOD, prompts_of_a_disc())
    config = replace_settings(CONFIG, steps=12)
    for step in distil_field(BALL.field(), source, CAMERAS, config, SETTINGS, 0, "numba"):
        if step.step == 5:
            write(tmp_path / "run", step.checkpoint(), settings_of(BALL.field(), 0, SETTINGS))
            break
    checkpoint, saved = read(tmp_path / "run", FIELD)
    assert same(checkpoint.field().grid, step.result.grid)
    require_same(saved, settings_of(BALL.field(), 0, SETTINGS))
    with pytest.raises(OtherRun):
        require_same(saved, settings_of(BALL.field(), 0, replace(SETTINGS, levels=1)))
    with pytest.raises(OtherRun):
        require_same(saved, settings_of(BALL.field().scale_by(2.0), 0, SETTINGS))
    first, *rest = dream(resume=checkpoint)
    assert first.step == 5 and len(rest) == 7
    assert torch.equal(rest[-1].result.grid, whole[-1].result.grid)
    assert rest[-1].losses == whole[-1].losses


def test_a_field_alone_is_a_checkpoint_of_no_other_run(tmp_path):
    field = random_field()
    write(tmp_path / "field.safetensors", checkpoint_of_field(field, 7), {})
    checkpoint, settings = read(tmp_path / "field.safetensors", FIELD)
    assert checkpoint.step == 7 and torch.equal(checkpoint.field().grid, field.grid)
    assert checkpoint.field().extent == field.extent
    with raises(OtherRun):
        require_same(settings, settings_of(field, 0, SETTINGS))


def test_checkpoints_of_the_other_representation_are_refused(tmp_path):
    write(tmp_path / "field", dream(steps=1)[0].checkpoint(), {})
    write(tmp_path / "splat", run_splats(replace_settings(CONFIG, steps=1))[0].checkpoint(), {})
    with raises(BadFile, path=tmp_path / "field"):
        read(tmp_path / "field")
    with raises(BadFile, path=tmp_path / "splat"):
        read(tmp_path / "splat", FIELD)


def test_fields_that_cannot_be_optimised_are_refused():
    source = GuidanceSource(WishPrior(), METHOD, prompts_of_a_disc())
    bad = BALL.field()
    bad.grid[0, 0, 0, 0] = math.nan
    empty = Field(BALL.field().grid - 100, 2.0)
    for field in (bad, empty, Field(torch.zeros(4, 2, 3, 2), 1.0)):
        with raises(BadInput, name="field"):
            next(distil_field(field, source, CAMERAS, CONFIG, SETTINGS, 0, "numba"))


def test_a_field_fits_true_views():
    shots = pictures_of("a purple house", size=64)
    fitted, held_out = shots.divide(FIT.held_out)
    config = replace_settings(FITS["cpu"], steps=120, views=2)
    settings = FieldConfig(lr_density=(0.4, 0.04), lr_color=(0.25, 0.025))
    *_, last = fit_field(FieldStart(resolution=56).field(), fitted, FIT, config, settings, 0, "numba")
    seen = rendering.render(last.result, held_out.cameras, 64, 64, torch.ones(3)).rgb
    psnr = -10 * (seen - held_out.images).square().mean((1, 2, 3)).log10()
    assert psnr.mean() > 25


@pytest.mark.parametrize("field", [Field(BALL.field().grid - 100, 2.0), BALL.field()])
def test_a_fit_to_cameras_that_do_not_see_the_field_is_refused(field):
    shots = pictures_of("a purple house", size=16)
    if field.grid.max() > 0:  # then they look elsewhere
        viewmats = shots.cameras.viewmats.clone()
        viewmats[:, 0, 3] += 50
        shots = replace(shots, cameras=replace(shots.cameras, viewmats=viewmats))
    with raises(BadInput, name="cameras"):
        next(fit_field(field, shots, FIT, FITS["cpu"], FieldConfig(), 0, "numba"))


def test_a_level_is_half_the_one_before():
    field = Radiance(FieldStart(resolution=20).field(), CONFIG, replace(SETTINGS, levels=3))
    sides = [field.params[f"density{level}"].shape[-1] for level in range(3)]
    assert sides == [20, 10, 5] and set(field.optimizers) == set(field.params)
    assert torch.equal(field.value().grid, FieldStart(resolution=20).field().grid)
