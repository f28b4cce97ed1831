import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from demo import camera_data, camera_score, checkpoint, unet, world
from demo.camera_unet import WORD_SHARE, CameraUNet, pad_state, start_from_text
from demo.prior import DemoCameraPrior, part
from demo.train import train as train_text
from demo.train_camera import Config, export, train
from lucid_core.conditioning.picture import Picture, PictureView
from lucid_core.conditioning.picture_prompt import camera_columns

from .test_train import TINY, Clock, now

STEPS = 5
TINY_CAMERA = Config(objects=4, held_out=1, size=32, save_every_s=2)
TINY_CAMERA = replace(TINY_CAMERA, recipe=replace(TINY_CAMERA.recipe, minutes=STEPS / 60, warmup=2))


@pytest.fixture(scope="module")
def text_prior(tmp_path_factory):
    """A small text model without training, in a narrow file."""
    tiny = replace(TINY, vae=now(TINY.vae), unet=now(TINY.unet))
    return train_text(tmp_path_factory.mktemp("text"), tiny, report=len)


@pytest.fixture(scope="module")
def model() -> CameraUNet:
    """A model with the text model's weights and random ones for the picture and the camera."""
    torch.manual_seed(0)
    model = CameraUNet().requires_grad_(False).eval()
    model.unet.load_state_dict(with_picture_channels(part(load_file(checkpoint.PRIOR), "unet.")))
    return model


def with_picture_channels(text):
    """The state of a text model's UNet with random weights for the picture."""
    weight = text["input_blocks.0.0.weight"]
    return text | {"input_blocks.0.0.weight": torch.cat([weight, 0.1 * torch.randn_like(weight)], 1)}


def inputs(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    noisy, picture = torch.randn(2, 3, 4, 16, 16, generator=generator)
    return noisy, torch.tensor([20.0, 500.0, 900.0]), picture, torch.randn(3, 4, generator=generator)


@torch.no_grad()
def test_the_padded_model_computes_what_the_narrow_one_does(model):
    scale = checkpoint.SD15_LATENT_SCALE
    wide = pad_state(model.state_dict(), scale)
    stock = unet.UNet(*unet.SD15_WIDTHS, inputs=8)
    stock.load_state_dict(part(wide, "model.diffusion_model."))
    noisy, timesteps, picture, columns = inputs()
    expected = model(noisy, timesteps, picture, columns, torch.ones(3, dtype=torch.bool))
    conditioning = torch.cat([torch.zeros(3, 1, 768), columns[:, None]], -1)  # the image encoder gives zeros
    context = F.linear(conditioning, wide["cc_projection.weight"], wide["cc_projection.bias"])
    unscaled = picture / scale  # as the host's VAE makes them
    found = stock(torch.cat([noisy, unscaled], 1), timesteps, context)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert expected.std() > 0.5

    nothing = model(noisy, timesteps, picture, columns, torch.zeros(3, dtype=torch.bool))
    found = stock(torch.cat([noisy, torch.zeros_like(picture)], 1), timesteps, torch.zeros(3, 1, 768))
    torch.testing.assert_close(found, nothing, atol=2e-3, rtol=0)
    assert (nothing - expected).abs().amax() > 0.1


@torch.no_grad()
def test_the_start_is_the_text_model_with_view_words(model):
    text, (front, back, overhead, white) = unet.UNet(), torch.randn(4, 768)
    text.load_state_dict(part(load_file(checkpoint.PRIOR), "unet."))
    start = CameraUNet()
    words = {"front": front, "back": back, "overhead": overhead, "white": white}
    start_from_text(start, text.state_dict(), words)
    angles = lambda *degrees: torch.tensor(degrees).deg2rad()
    columns = camera_columns(
        *(angles(0, 180, 90), angles(0, 0, 60)), angles(0.0, 0.0, 0.0), angles(20.0, 0.0, 10.0)
    )
    start.cc_projection.weight[:, 1] = 0  # the sine has no word
    expected = WORD_SHARE * (torch.stack([front, back, overhead]) + white)
    torch.testing.assert_close(start.cc_projection(columns), expected, atol=1e-4, rtol=0)

    noisy, timesteps, picture, _ = inputs()
    found = start(noisy, timesteps, picture, columns, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(found, text(noisy, timesteps, expected[:, None]), atol=1e-3, rtol=0)


def test_the_columns_are_the_angles_from_the_pictures_camera():
    degrees = lambda *values: torch.tensor(values, dtype=torch.float64).deg2rad()
    columns = camera_columns(degrees(120, -45), degrees(45, 10), degrees(30, 0), degrees(15, 0))
    half, eighth = math.pi / 2, math.sqrt(0.5)
    expected = [
        [math.radians(-30), 1, 0, half - math.radians(15)],
        [math.radians(-10), -eighth, eighth, half],
    ]
    torch.testing.assert_close(columns, torch.tensor(expected, dtype=torch.float64))


def test_the_views_of_an_object_share_all_but_the_direction():
    few, many = camera_data.draw(3, seed=2), camera_data.draw(5, seed=2)
    np.testing.assert_array_equal(few.azimuth_rad, many.azimuth_rad[: len(few)])
    by_object = lambda values: values.reshape(5, camera_data.VIEWS, -1)
    for shared in (many.kind, many.rgb, many.fovy_rad, many.fill, many.offset, many.background):
        assert (by_object(shared) == by_object(shared)[:, :1]).all()
    elevation = np.degrees(by_object(many.elevation_rad)[..., 0])
    assert (elevation[:, : camera_data.PICTURES] > -5).all() and (elevation < 80).all()
    assert (many.background == 1).all() and (many.offset == 0).all()


def test_a_stopped_training_resumes_where_it_stopped(tmp_path, text_prior):
    said, cpu = [], torch.device("cpu")
    run = lambda folder, clock: train(folder, TINY_CAMERA, cpu, said.append, clock, text_prior)
    whole = run(tmp_path / "whole", Clock())
    assert [line.split(":")[0] for line in said if "step" in line] == [f"step {i}" for i in (2, 4, 5)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Clock(last=5))
    expected, resumed = load_file(whole), load_file(run(tmp_path / "stopped", Clock()))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    text = load_file(text_prior)
    kept = [name for name in expected if not name.startswith(("unet.", "cc_projection."))]
    assert len(kept) > 50 and all(torch.equal(expected[name], text[name]) for name in kept)

    full = checkpoint.expand(expected)
    assert full["model.diffusion_model.input_blocks.0.0.weight"].shape == (320, 8, 3, 3)
    assert full["cc_projection.weight"].shape == (768, 772)
    vision = "cond_stage_model.model.visual."
    assert full[f"{vision}transformer.resblocks.23.attn.in_proj_weight"].shape == (3072, 1024)
    assert full[f"{vision}proj"].shape == (1024, 768)
    assert all(not value.view(torch.uint8).any() for name, value in full.items() if name.startswith(vision))


@torch.no_grad()
def test_the_prior_predicts_what_the_model_does(model, tmp_path):
    export(tmp_path / "camera.safetensors", model, load_file(checkpoint.PRIOR))
    prior = DemoCameraPrior(tmp_path / "camera.safetensors")
    rgb = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    prompts = prior.prompts(
        Picture(rgb, torch.ones(64, 64, 1), PictureView(elevation_deg=20, azimuth_deg=-30))
    )
    azimuth, elevation = torch.tensor([0.0, 2.0]), torch.tensor([0.5, -0.1])
    conds = prompts.at(prior, azimuth, elevation)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    own = (torch.full((2,), math.radians(angle)) for angle in (-30, 20))
    picture, columns = prior.encode(rgb[None]).expand(2, -1, -1, -1), camera_columns(azimuth, elevation, *own)
    t, found = prior.timestep(3.0).expand(2), prior.denoise(z, 3.0, [conds.y, conds.negative])
    for given, x0 in zip((True, False), found, strict=True):
        expected = z - 3.0 * model(z / 10**0.5, t, picture, columns, torch.full((2,), given))
        torch.testing.assert_close(x0, expected, atol=5e-3, rtol=0)  # fp16 weights
    assert prior.evaluations == 4


def test_a_data_set_that_is_all_held_out_is_refused():
    with pytest.raises(ValueError, match="objects is 20"):
        Config(objects=20)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mug", "house", "snowman"])
def test_the_camera_prior_knows_the_world(kind):
    """From a picture of the front it predicts both sides better than with the sides swapped, and better than
    from the picture of another thing.
    """
    prior = DemoCameraPrior()
    own, azimuth, elevation = math.radians(15), torch.tensor([-70.0, 70.0]).deg2rad(), torch.zeros(2)
    shown = lambda name, *angles: torch.from_numpy(world.render(world.parse(name), *angles, 0.45, 128)[0])
    z0 = prior.encode(shown(f"a red {kind}", azimuth, elevation))
    sigma = prior.sigma(0.8)
    z = z0 + sigma * torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))

    def error(name, sides):
        picture = camera_score.picture_of(shown(name, 0.0, own)[0], 0.0, own)
        conds = prior.prompts(picture).at(prior, sides, elevation)
        (x0,) = prior.denoise(z, sigma, [conds.y])
        return float((x0 - z0).square().mean())

    right = error(f"a red {kind}", azimuth)
    assert error(f"a red {kind}", -azimuth) > 1.1 * right
    assert error("a yellow cone", azimuth) > 2 * right
