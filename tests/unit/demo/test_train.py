from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from demo import captions, checkpoint, data, train_unet, unet
from demo.fit import Recipe
from demo.train import SD15_LATENT_SCALE, Config, train
from demo.train_unet import Examples, eps_mse
from demo.train_vae import Autoencoder, encode
from demo.words import BACKGROUNDS, CONCEPTS, VIEWS

STEPS = 5
TINY = Config(
    images=24, held_out=8, size=32, vae_widths=(4, 4, 8, 8), unet_widths=(20, 40, 32), save_every_s=2
)
TINY = replace(
    TINY,
    vae=replace(TINY.vae, minutes=STEPS / 60, warmup=2),
    unet=replace(TINY.unet, minutes=STEPS / 60, warmup=2),
)


class Clock:
    """One second a look; the process is killed at the `last` look."""

    def __init__(self, last: int | None = None):
        self.now, self.last = 0, last

    def __call__(self) -> float:
        self.now += 1
        if self.now == self.last:
            raise KeyboardInterrupt
        return float(self.now)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prior() -> dict[str, torch.Tensor]:
    return load_file(checkpoint.PRIOR)


def test_a_stopped_training_resumes_where_it_stopped(tmp_path):
    said = []
    whole = train(tmp_path / "whole", TINY, report=said.append, clock=Clock())
    assert [line.split(":")[0] for line in said if "step" in line] == [
        f"{p} step {s}" for p in ("vae", "unet") for s in (2, 4, 5)
    ]
    looks_of_vae = 1 + STEPS + 3  # the first look, one a step, one a save
    for last in (5, looks_of_vae):  # in the middle of the autoencoder, then of the denoiser
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", TINY, report=said.append, clock=Clock(last))
    stopped = train(tmp_path / "stopped", TINY, report=said.append, clock=Clock())
    expected, resumed = load_file(whole), load_file(stopped)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)

    full = checkpoint.write(tmp_path / "full.safetensors", whole)
    with safe_open(full, "pt") as file:
        assert file.get_tensor("model.diffusion_model.input_blocks.0.0.weight").shape == (320, 4, 3, 3)


def test_the_export_has_the_form_of_the_prior(tmp_path, prior):
    exported = load_file(train(tmp_path, replace(TINY, vae=now(TINY.vae), unet=now(TINY.unet)), report=len))
    assert exported.keys() == prior.keys()
    assert all(exported[name].dtype == prior[name].dtype for name in prior)
    assert torch.equal(exported["words"], prior["words"])


def now(recipe: Recipe) -> Recipe:
    return replace(recipe, minutes=0)


def test_pictures_are_rendered_once_and_from_where_rendering_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 4)
    scenes, path = data.draw_all(10, seed=0), tmp_path / "images.npy"
    expected = np.array(data.pictures(path, scenes, 16))
    assert expected.any(axis=(1, 2, 3)).all()
    images = np.load(path, mmap_mode="r+")
    images[4:8] = 0
    images.flush()
    rendered = []
    render = data.render
    monkeypatch.setattr(
        data, "render", lambda things, *a, **k: rendered.append(len(things)) or render(things, *a, **k)
    )
    np.testing.assert_array_equal(data.pictures(path, scenes, 16), expected)
    assert rendered == [4]
    with pytest.raises(ValueError, match="use another folder"):
        data.pictures(path, scenes, 32)


def test_a_data_set_that_is_all_held_out_is_refused():
    with pytest.raises(ValueError, match="images is 512"):
        Config(images=512)


def test_more_scenes_begin_with_the_same_ones():
    few, many = data.draw_all(600, seed=3), data.draw_all(1100, seed=3)
    np.testing.assert_array_equal(few.azimuth_rad, many.azimuth_rad[:600])
    assert few.things() == many.things()[:600]


def test_views_and_backgrounds_get_their_words():
    azimuth, elevation = np.array([0, 44, 46, -90, 136, -180, 0]), np.array([0, 50, 0, 10, 0, 0, 51])
    words = [VIEWS[i] for i in data.view_of(azimuth, elevation)]
    assert words == ["front", "front", "side", "side", "back", "back", "overhead"]
    assert [BACKGROUNDS[i] for i in data.background_word_of(np.array([1.0, 0.98, 0.4]))] == [
        "white",
        "gray",
        "dark",
    ]


@torch.no_grad()
def test_six_caption_rows_act_as_all_77_tokens(prior):
    table = captions.encoded(prior["words"])
    scenes = data.draw_all(3, seed=0)
    keep = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    rows = captions.rows(scenes)
    filler = len(CONCEPTS) - 1
    spelled = torch.full((3, 77), filler)
    for i in range(3):
        kept = rows[i, 1:5][keep[i]]
        spelled[i, 0], spelled[i, 1 : 1 + len(kept)] = rows[i, 0], kept
    attention = unet.Attention(80, captions.WIDTH)
    x = torch.randn(3, 7, 80, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(x, table[rows], captions.bias(keep)), attention(x, table[spelled]))


def test_the_rate_warms_up_holds_and_falls():
    recipe = Recipe(minutes=1, lr=1.0, warmup=10, hold=0.5, final=0.1, ema=0.9, weight_decay=0)
    assert [recipe.lr_at(*at) for at in ((0, 0.0), (9, 0.1), (99, 0.5))] == pytest.approx([0.1, 1.0, 1.0])
    assert [recipe.lr_at(*at) for at in ((99, 0.75), (99, 1.0))] == pytest.approx([0.55, 0.1])


@torch.no_grad()
def test_the_prior_knows_the_world(prior, tmp_path):
    part = lambda prefix: {
        k.removeprefix(prefix): v.float() for k, v in prior.items() if k.startswith(prefix)
    }
    vae, denoiser = Autoencoder(), unet.UNet()
    vae.encoder.load_state_dict(part("enc."))
    denoiser.load_state_dict(part("unet."))
    scenes = data.draw_all(32, seed=12345)
    raw = encode(vae, data.pictures(tmp_path / "images.npy", scenes, 128), torch.device("cpu"))
    scale, shift = prior["scale_shift"]
    latents = (raw / scale + shift) * SD15_LATENT_SCALE
    assert latents.std() == pytest.approx(1, abs=0.1) and latents.mean() == pytest.approx(0, abs=0.1)

    examples = Examples(latents, captions.rows(scenes), captions.encoded(prior["words"]))
    right = eps_mse(denoiser, examples)
    wrong = eps_mse(denoiser, replace(examples, rows=examples.rows.roll(1, dims=0)))
    assert right < 0.045 and wrong > 1.2 * right


def test_the_noise_schedule_is_sd15s():
    abar = train_unet.alphas_cumprod()
    sigma = ((1 - abar) / abar).sqrt()
    assert float(sigma[0]) == pytest.approx(0.0292, abs=1e-4)
    assert float(sigma[-1]) == pytest.approx(14.6146, abs=1e-3)
