"""Editing of a picture: what changes, what stays bit-identical, and what is refused."""

import pytest
import torch
from raising import raises

from lucid_core.conditioning.view_prompts import Prompts
from lucid_core.errors import BadInput, BadSetting, NotFinite, OutOfMemory
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.mixing import GuidanceSource
from lucid_core.optimize.edit import Edit, edit_picture

from .scenes import METHOD, SIZE, WishPrior, disc, normal

RED, BLUE = [0.9, 0.2, 0.1], [0.1, 0.2, 0.9]
CONFIG = Edit(steps=20, rate=0.2)


def source(guidance=METHOD, prior=None):
    """The picture shows a blue disc; it is to be red."""
    wish, now = normal(disc(RED), 0.01), normal(disc(BLUE), 0.01)
    return GuidanceSource(prior or WishPrior(), guidance, Prompts((wish,) * 4, negative=now, inverse=now))


def picture(height=SIZE, width=SIZE):
    return disc(BLUE)[0].movedim(0, -1)[:height, :width].contiguous()


def edited(image, *, mask=None, seed=0, config=CONFIG, of=None):
    *_, last = edit_picture(of or source(), image, config, seed, mask)
    return last.picture(), last.mask


def test_only_what_the_text_changes_is_changed():
    image = picture()
    result, mask = edited(image)
    inside = (disc(RED)[0, 1] < 0.5).float()
    wider = torch.nn.functional.max_pool2d(inside[None, None], 3, stride=1, padding=1)[0, 0]
    assert torch.equal(mask, wider)  # the latents are the pixels; the mask is one latent wider
    assert torch.equal(result[mask == 0], image[mask == 0])
    distance = lambda one: (one - disc(RED)[0].movedim(0, -1))[inside > 0].abs().mean()
    assert distance(result) < 0.5 * distance(image)


def test_a_mask_decides_where():
    image, mask = picture(), torch.zeros(SIZE, SIZE)
    mask[:, : SIZE // 2] = 1
    result, shown = edited(image, mask=mask)
    assert torch.equal(shown, mask)
    assert torch.equal(result[:, SIZE // 2 :], image[:, SIZE // 2 :])
    assert (result - image)[:, : SIZE // 2].abs().max() > 0.1


def test_a_threshold_of_zero_changes_all():
    _, mask = edited(picture(), config=Edit(steps=1, threshold=0))
    assert torch.equal(mask, torch.ones(SIZE, SIZE))


def test_a_picture_that_is_not_square_keeps_its_size():
    image = picture(height=40)
    result, mask = edited(image)
    assert result.shape == image.shape and mask.shape == image.shape[:2]
    assert torch.equal(result[mask == 0], image[mask == 0])


def test_the_seed_gives_the_picture_and_the_weight_does_not_count():
    image = picture()
    first, again, other = (edited(image, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    heavy = source(guidance=type(METHOD)(**{**vars(METHOD), "weight": 8 * METHOD.weight}))
    assert torch.allclose(edited(image, of=heavy)[0], first, atol=1e-6)


def test_steps_report_as_they_go():
    states = list(edit_picture(source(), picture(), Edit(steps=3), 0))
    assert [state.step for state in states] == [1, 2, 3]
    first, last = states[0].picture(), states[-1].picture()  # both stay valid
    assert not torch.equal(first, last)


def test_bad_input_is_refused_by_name():
    with raises(BadInput, name="mask"):
        edited(picture(), mask=torch.ones(SIZE, SIZE // 2))
    with raises(BadInput, name="mask"):
        edited(picture(), mask=torch.zeros(SIZE, SIZE))
    same = normal(disc(BLUE), 0.01)
    with raises(BadInput, name="guidance"):
        edited(picture(), of=GuidanceSource(WishPrior(), METHOD, Prompts((same,) * 4, same, same)))
    with raises(BadSetting, name="threshold"):
        Edit(threshold=1.5)
    with pytest.raises(TypeError):
        edited(picture(), of=source(guidance=ImageTargets()))


def test_what_is_not_finite_or_does_not_fit_stops_the_edit():
    class Spoiled(WishPrior):
        def denoise(self, z, sigma, conds):
            return [answer * float("nan") for answer in super().denoise(z, sigma, conds)]

    class Full(WishPrior):
        def denoise(self, z, sigma, conds):
            raise torch.cuda.OutOfMemoryError("on purpose")

    with raises(NotFinite, what="the gradient", step=1):
        edited(picture(), of=source(prior=Spoiled()), mask=torch.ones(SIZE, SIZE))
    with raises(OutOfMemory):
        edited(picture(), of=source(prior=Full()))
