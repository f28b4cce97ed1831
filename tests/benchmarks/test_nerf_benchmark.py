"""The cases and the rows of `python -m benchmarks nerf`."""

import json
import sys
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.nerf.cases import CONVERTED, plan
from benchmarks.nerf.run import kept, run, summaries
from benchmarks.quality.cases import evaluations_a_step
from benchmarks.quality.run import Result, measure
from demo import score, world
from lucid_core.field.grid import FieldStart
from lucid_core.io import ply

CASES = plan(["mug", "house"], [0], ["ism", "sds"], ["field", "splats"], ["closed", "open"], 0.5)
RESULT = Result(20.0, 0.8, 0.9, 1.0, None, 0.1, 0.2, 0.3, 2000, 10.0, 5, 1.0, None)


def test_cases_differ_and_ask_the_model_equally_often(tmp_path):
    assert len({case.key for case in CASES}) == len(CASES) == 16
    asked = [case.case.config.budget.steps * evaluations_a_step(case.case) for case in CASES[:4]]
    assert asked == [pytest.approx(asked[0], rel=0.02)] * 4
    assert not any(kept(case, tmp_path) for case in CASES)


def test_a_field_has_the_gradient_of_its_preset_and_a_splat_that_of_its_method():
    residual = {case.representation: case.case.config.optimizer.pixels.image_residual for case in CASES}
    assert residual == {"field": True, "splats": False}


def test_an_open_prompt_has_an_answer_of_each_colour():
    closed, opened = CASES[0], CASES[-1]
    assert [thing.color for thing in closed.things()] == ["green"]
    assert {thing.color for thing in opened.things()} == set(world.COLORS)
    assert {thing.kind for thing in opened.things()} == {"house"}


def test_rows_are_means_by_representation_method_and_kind_of_prompt():
    rows = summaries(dict.fromkeys(CASES, RESULT))
    names = ["representation", "method", "prompt_kind", "psnr", "ssim", "iou", "sharpness", "mud"]
    assert [list(row) for row in rows] == [[*names, "evaluations", "seconds", "cases"]] * 8
    assert all(row["cases"] == 2 and row["psnr"] == 20.0 and row["evaluations"] == 2000 for row in rows)


def test_a_converted_field_is_that_of_the_kept_case(tmp_path, monkeypatch):
    """And is measured as a splat."""
    monkeypatch.setattr(sys.modules[run.__module__], "FIT_STEPS", 2)
    of_field, converted = plan(["mug"], [0], ["ism"], ["field", CONVERTED], ["closed"], 0.5)
    field = FieldStart(resolution=32, size=1.2, fill=8.0, color=(0.1, 0.6, 0.2)).field()
    save_file({"grid": field.grid, "extent": torch.tensor(field.extent)}, tmp_path / f"{of_field.key}.field")
    (tmp_path / f"{of_field.key}.json").write_text(json.dumps(asdict(RESULT)))
    result = run(converted, tmp_path)
    assert result.evaluations == RESULT.evaluations and 0.3 < result.iou < 1 and result.score is not None
    assert len(ply.read(tmp_path / f"{converted.key}.ply")) > 100
    assert kept(converted, tmp_path) == result != kept(of_field, tmp_path)


def test_a_field_is_scored_as_a_splat_is():
    field = FieldStart(resolution=32, size=1.2, fill=8.0, color=(0.1, 0.6, 0.2)).field()
    truth = score.truth(world.parse("a green mug"), 2)
    rgb, alpha = score.view(field, truth)
    assert rgb.shape == truth.rgb.shape and alpha.shape == truth.mask.shape
    assert torch.equal(score.view(field.scale_by(1.0), truth)[0], rgb)
    assert (score.view(field.scale_by(0.5), truth)[1] > 0.5).sum() < (alpha > 0.5).sum() / 2


def test_all_measures_of_a_field_except_the_score_of_splats():
    field = FieldStart(resolution=32, size=1.2, fill=8.0, color=(0.1, 0.6, 0.2)).field()
    facts = {"evaluations": 8, "seconds": 1.0, "steps": 2, "stopped": None}
    result = measure(field, world.parse("a green mug"), facts)
    assert result.score is None and result.psnr > 5 and 0 < result.iou < 1 and result.evaluations == 8
