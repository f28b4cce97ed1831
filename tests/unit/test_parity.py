"""Our maths against diffusers' own: its DDIM schedulers, and a Stable Diffusion checkpoint loaded by it."""

import pytest
import torch
from raising import raises

from lucid_core.diffusion.diffusers_prior import SD15_BETAS, DiffusersPrior
from lucid_core.diffusion.prior import Conds
from lucid_core.errors import BadInput, BadSetting
from lucid_core.guidance.base import ddim, eps
from lucid_core.guidance.ism import ISM, interval_score, inversion_times

diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 4, 6, 6)
KINDS = ("epsilon", "v_prediction")


class Net(torch.nn.Module):
    """A small nonlinear 'UNet' in float64: the same function stands behind both sides."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
        self.requires_grad_(False)

    def forward(self, x, timestep, encoder_hidden_states):
        text = encoder_hidden_states.mean((1, 2))[:, None, None, None]
        output = torch.tanh(self.conv(x) + text) + 0.3 * x * (timestep / 1000)
        return type("Output", (), {"sample": output})


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def text(seed):
    return torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latents(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scheduler(kind, steps, prediction_type):
    made = kind(
        **SD15_BETAS,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0,
    )
    made.alphas_cumprod = made.alphas_cumprod.double()
    made.set_timesteps(steps)
    return made


def prior_of(net, prediction_type):
    return DiffusersPrior(
        net, None, scheduler(diffusers.DDIMScheduler, 10, prediction_type).alphas_cumprod, prediction_type
    )


def abar_of(prior, step):
    return 1 / (1 + prior.sigma(step / 999) ** 2)


@pytest.mark.parametrize("prediction_type", KINDS)
def test_inversion_is_diffusers_ddim_inverse_scheduler(net, prediction_type):
    """x at step 0 to step 900, by our `ddim` and by DDIMInverseScheduler; z is x / sqrt(abar)."""
    prior, y, start = prior_of(net, prediction_type), text(1), latents(2)
    theirs = scheduler(diffusers.DDIMInverseScheduler, 10, prediction_type)
    x = start
    for step in theirs.timesteps[
        1:
    ]:  # its `timestep` is where the step leads; the model is asked where it starts
        output = net(x, step - 100, y.expand(2, -1, -1)).sample
        x = theirs.step(output, int(step), x).prev_sample
    sigmas = [prior.sigma(step / 999) for step in range(0, 901, 100)]
    z = ddim(start / abar_of(prior, 0) ** 0.5, sigmas, lambda z, sigma: eps(prior, z, sigma, [y])[0])
    torch.testing.assert_close(z * abar_of(prior, 900) ** 0.5, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", KINDS)
def test_denoising_is_diffusers_ddim_scheduler(net, prediction_type):
    """From step 900 down to 0 and the last prediction of x0."""
    prior, y, start = prior_of(net, prediction_type), text(1), latents(2)
    theirs = scheduler(diffusers.DDIMScheduler, 10, prediction_type)
    x = start
    for step in theirs.timesteps[:-1]:
        x = theirs.step(net(x, step, y.expand(2, -1, -1)).sample, int(step), x).prev_sample
    last = theirs.step(net(x, torch.tensor(0), y.expand(2, -1, -1)).sample, 0, x).pred_original_sample
    sigmas = [prior.sigma(step / 999) for step in range(900, -1, -100)]
    z = ddim(start / abar_of(prior, 900) ** 0.5, sigmas, lambda z, sigma: eps(prior, z, sigma, [y])[0])
    torch.testing.assert_close(z * abar_of(prior, 0) ** 0.5, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prior.denoise(z, sigmas[-1], [y])[0], last, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", KINDS)
def test_one_step_of_ism_is_the_papers_in_the_ddpm_form_by_diffusers(net, prediction_type):
    """Equations 12 and 17 with w = sqrt((1 - abar) / abar): inversion, interval and target by diffusers'
    schedulers alone.
    """
    prior, conds = prior_of(net, prediction_type), Conds(text(1), text(2), text(3))
    ism, x0, noise = ISM(delta_s=200 / 999, inversion_steps=2), latents(4), latents(5)
    s, t = 600, 700
    assert [round(999 * time) for time in inversion_times(s / 999, ism.delta_s, 2)] == [200, 400, 600]
    g = interval_score(ism, prior, x0, noise, t / 999, s / 999, conds, torch.Generator())

    inverse, forward = (
        scheduler(k, 1000, prediction_type) for k in (diffusers.DDIMInverseScheduler, diffusers.DDIMScheduler)
    )
    ask = lambda x, step, cond: net(x, torch.tensor(step), cond.expand(2, -1, -1)).sample
    x = forward.add_noise(x0, noise, torch.tensor([200, 200]))
    for a, b in ((200, 400), (400, 600), (600, 700)):
        output = ask(x, a, conds.inverse)
        e_s = forward_eps(forward, output, a, x)
        inverse.set_timesteps(1000 // (b - a))  # the length of its stride follows from this
        x = inverse.step(output, b, x).prev_sample
    e_y, e_negative = (forward_eps(forward, ask(x, t, cond), t, x) for cond in (conds.y, conds.negative))
    e_t = e_negative + 7.5 * (e_y - e_negative)
    abar = forward.alphas_cumprod[t]
    torch.testing.assert_close(g, ((1 - abar) / abar).sqrt() * (e_t - e_s), rtol=1e-6, atol=1e-6)


def forward_eps(forward, output, step, x):
    """The noise that the scheduler finds in x: from its own prediction of x0."""
    x0 = forward.step(output, step, x).pred_original_sample
    abar = forward.alphas_cumprod[step]
    return (x - abar.sqrt() * x0) / (1 - abar).sqrt()


def test_a_diffusers_vae_is_encoded_and_decoded_in_our_convention(net):
    """Images in [0, 1], latents scaled as the UNet was trained, gradients to the pixels; conditionings blend
    by row.
    """
    torch.manual_seed(1)
    vae = (
        diffusers.AutoencoderKL(
            block_out_channels=(32, 32),
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
        .eval()
        .requires_grad_(False)
    )
    prior = DiffusersPrior(net, vae, scheduler(diffusers.DDIMScheduler, 10, "epsilon").alphas_cumprod)
    images = torch.rand(2, 16, 16, 3, requires_grad=True)
    latents = prior.encode(images)
    expected = vae.encode(images.movedim(-1, 1) * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)
    latents.square().sum().backward()
    assert images.grad.abs().sum() > 0
    decoded = prior.decode(latents.detach())
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1
    rows = prior.blend([text(1), text(2)], torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    torch.testing.assert_close(rows[1:], 0.25 * text(1) + 0.75 * text(2))


def test_an_unknown_parameterisation_is_refused(net):
    with raises(BadSetting, name="prediction_type", value="flow"):
        DiffusersPrior(net, None, torch.linspace(0.99, 0.01, 10), "flow")


def test_a_prior_without_a_vae_says_so(net):
    with raises(BadInput, name="vae"):
        prior_of(net, "epsilon").encode(torch.zeros(1, 8, 8, 3))
