"""The image benchmark: its cases, what guides them, and what is measured."""

from dataclasses import replace

import pytest
import torch
from raising import raises

from benchmarks import image
from benchmarks.image.cases import PictureCase, picture, plan
from benchmarks.quality import cases as quality
from benchmarks.quality.run import run_all
from demo import score
from demo.world import parse
from lucid_core.errors import BadSetting
from lucid_core.settings import replace_settings


@pytest.fixture
def cases():
    return plan(["a blue snowman"], [3], ["camera", "both", "text"])


def test_text_is_the_workflow(cases):
    (default,) = quality.plan(["a blue snowman"], [3], ["default"], [1.0])
    assert replace(cases[2], label="default") == default


def test_the_methods_share_start_and_seed(cases):
    camera, both, text = cases
    assert camera.start == both.start == text.start
    assert (camera.seed, camera.start_seed) == (text.seed, text.start_seed)
    assert camera.cameras == both.cameras and camera.cameras.radius_min == camera.cameras.radius_max_end


def test_camera_sees_the_picture_alone_and_both_the_words_too(cases):
    camera, both, _ = (case.source() for case in cases)
    assert [type(prior).__name__ for prior in camera.priors()] == ["DemoCameraPrior"]
    assert [type(prior).__name__ for prior in both.priors()] == ["DemoCameraPrior", "DemoPrior"]


def test_even_seeds_see_the_picture_at_15_degrees_and_odd_ones_at_30(cases):
    (even,) = plan(["a blue snowman"], [4], ["camera"])
    assert (even.elevation_deg, cases[0].elevation_deg) == (15.0, 30.0)


def test_the_picture_is_the_front_in_the_cases_own_camera(cases):
    shown = picture(parse("a blue snowman"), 15.0)
    torch.testing.assert_close(shown.rgb, score.truth(parse("a blue snowman")).rgb[0])
    assert cases[0].cameras.fovy_min_deg == cases[0].cameras.fovy_max_end_deg == score.FOVY_DEG


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("prompts", (["a teapot"], [0], ["camera"])),
        ("methods", (["a red mug"], [0], ["cameras"])),
        ("seeds", (["a red mug"], [-1], ["camera"])),
    ],
)
def test_what_cannot_run_is_refused(field, arguments):
    with raises(BadSetting, name=field):
        plan(*arguments)


def test_a_key_follows_the_settings_and_not_the_name(cases):
    camera = cases[0]
    assert replace(camera, label="other").key == camera.key
    changed = [replace(camera, elevation_deg=20.0), replace(camera, seed=4)]
    assert len({camera.key, *(case.key for case in changed)}) == 3


def test_a_case_is_run_and_summed_up(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(image, "FOLDER", tmp_path)
    camera = cases[0]
    ((model, guidance),) = camera.guidances
    quick = replace(guidance, views=1, kept=1, sampling_steps=1)
    small: PictureCase = replace(
        camera,
        guidances=((model, quick),),
        config=replace_settings(camera.config, steps=2, resolution=64),
        start=replace(camera.start, count=300),
    )
    results = run_all([small], tmp_path, jobs=1)
    row = image.summaries(results)["camera"]
    assert (row.cases, row.best) == (1, 1) and row.evaluations == results[small].evaluations > 0
    assert 0 < row.psnr < 40 and 0 < row.front_psnr < 40 and row.faces is not None
    assert image.table({"camera": row}).startswith("| method | psnr | best | front_psnr |")
