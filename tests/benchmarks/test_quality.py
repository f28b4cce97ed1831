"""The quality benchmark: equal budgets, cases that are run once, and a report of what was found."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from raising import raises

from benchmarks.quality import cases as planning
from benchmarks.quality import report
from benchmarks.quality import run as running
from benchmarks.quality.cases import evaluations_a_step, plan, with_method, workflow
from benchmarks.quality.methods import METHODS
from benchmarks.quality.run import Result, distil, kept, run_all
from demo import measures, score, shapes
from demo.words import KINDS
from demo.world import parse
from lucid_core.errors import BadSetting
from lucid_core.guidance.base import Guidance
from lucid_core.guidance.baselines import METHODS as BASELINES
from lucid_core.optimize.config import PRESETS
from lucid_core.settings import replace_settings

RESULT = Result(20.0, 0.9, 0.8, 1.1, 0.2, 0.05, 0.02, 0.5, 1000, 60.0, 25, 1.0, None)


@pytest.fixture
def small_case():
    """Two steps of one small view, from few splats."""
    base = replace(with_method(workflow(), METHODS["ism"]), label="ism", prompt="a blue snowman", seed=3)
    return replace(
        base,
        config=replace_settings(base.config, steps=2, views=1, resolution=64),
        start=replace(base.start, count=300),
    )


def test_the_benchmark_runs_what_the_workflow_has():
    graph = json.loads(planning.WORKFLOW.read_text(encoding="utf-8"))
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    case = workflow()
    assert (case.config.budget.steps, case.start.count) == (
        inputs["LucidDream"]["preset.steps"],
        inputs["LucidPointCloud"]["count"],
    )
    assert case.blend.blend_deg == inputs["LucidPrompt"]["blend_deg"]
    assert case.cameras.radius_max == inputs["LucidCameras"]["radius_max"]
    assert case.start.color == (128 / 255,) * 3
    guidance = {
        f"preset.{name}": getattr(case.guidance, name)
        for name in ("cfg", "t_max", "warmup", "inversion_steps")
    }
    assert guidance.items() <= inputs["LucidISM"].items()
    assert case.surface_share == pytest.approx(inputs["LucidISM"]["surface_share"])


def test_default_is_the_workflow():
    (planned,) = plan([workflow().prompt], [workflow().seed], ["default"], [1.0])
    assert replace(planned, surface_share=0) == replace(workflow(), surface_share=0)
    assert planned.surface_share == pytest.approx(workflow().surface_share, abs=1e-4)


def test_every_method_of_the_pack_takes_part():
    assert {type(method.guidance) for method in METHODS.values()} >= set(BASELINES.values())


def test_evaluations_are_those_of_the_methods():
    of = lambda name: evaluations_a_step(with_method(workflow(), METHODS[name]))
    views = PRESETS["cpu"].budget.views
    assert of("sds") == 2 * views  # with the prompt and without
    assert of("isd") == 3 * views
    assert of("ism") == 3 * views
    assert of("ism_perp_neg") > of("ism") + views  # one more prompt at least
    assert of("ism_inversion_5") > of("ism_inversion_1") > of("ism")


def test_the_demo_prior_counts_as_the_plan_does(small_case):
    case = with_method(small_case, METHODS["sds"])
    case = replace(case, config=replace_settings(case.config, steps=20))
    assert distil(case)[1]["evaluations"] == case.config.budget.steps * evaluations_a_step(case)


def test_all_methods_get_the_same_evaluations():
    names = ["ism", "sds", "sdi", "ism_official", "ism_perp_neg"]
    planned = plan(["a red mushroom"], [0], names, [1.0, 0.25])
    spent = {case.label: case.config.budget.steps * evaluations_a_step(case) for case in planned}
    assert set(spent) == {*names, *(f"{name}@0.25" for name in names)}
    assert (
        next(case for case in planned if case.label == "ism").config.budget.steps
        == PRESETS["cpu"].budget.steps
    )
    for name in names:
        assert spent[name] == pytest.approx(spent["ism"], rel=0.02)
        assert spent[f"{name}@0.25"] == pytest.approx(spent["ism"] / 4, rel=0.05)


def test_a_plan_goes_thing_by_thing():
    planned = plan(["a red mushroom", "a pink cube"], [0, 1], ["ism", "ism_no_views"], [1.0])
    assert [(case.prompt, case.seed, case.label) for case in planned[:3]] == [
        ("a red mushroom", 0, "ism"),
        ("a red mushroom", 0, "ism_no_views"),
        ("a pink cube", 0, "ism"),
    ]
    assert len(planned) == 8 and len({case.key for case in planned}) == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompts", ["a teapot"]), ("seeds", [-1]), ("methods", ["ims"]), ("budget", [math.nan])],
)
def test_what_cannot_run_is_refused(field, value):
    arguments = {"prompts": ["a red mushroom"], "seeds": [0], "methods": ["ism"], "budget": [1.0]} | {
        field: value
    }
    with raises(BadSetting, name=field):
        plan(*arguments.values())


def test_a_key_follows_the_settings_and_not_the_name(small_case):
    assert replace(small_case, label="other").key == small_case.key
    for changed in (
        replace(small_case, seed=4),
        replace(small_case, guidance=replace(small_case.guidance, cfg=1.5)),
        replace(small_case, config=replace_settings(small_case.config, lr_sh=(0.1, 0.1))),
        replace(small_case, blend=replace(small_case.blend, blend_deg=5.0)),
        replace(small_case, view_words=False),
        replace(small_case, start=replace(small_case.start, count=301)),
    ):
        assert changed.key != small_case.key


def test_a_finished_case_is_not_run_again(small_case, tmp_path, monkeypatch):
    first = run_all([small_case], tmp_path, jobs=2)[small_case]
    assert 0 < first.psnr < 40 and first.steps == 2 and first.stopped is None
    assert first.evaluations > 0 and first.seconds > 0 and first.faces is not None
    assert sorted(path.suffix for path in (tmp_path / "cases").iterdir()) == [".json", ".ply"]

    asked = []
    monkeypatch.setattr(running, "_finished", lambda cases, store, jobs: asked.extend(cases) or [])
    renamed, new = replace(small_case, label="twin"), replace(small_case, seed=4)
    assert run_all([small_case, renamed, new], tmp_path, jobs=1) == {small_case: first, renamed: first}
    assert asked == [new]
    assert "| twin " in (tmp_path / "table.md").read_text()

    report.write_sheets({small_case: first}, tmp_path)
    assert (tmp_path / "ism.png").stat().st_size > 10_000
    (tmp_path / "cases" / f"{small_case.key}.json").unlink()  # stopped before it was whole
    assert kept(small_case, tmp_path / "cases") is None


def test_view_words_can_be_left_out(small_case, monkeypatch):
    asked = []
    prior = planning.text_prior()
    monkeypatch.setattr(prior, "denoise", lambda z, sigma, conds: asked.append(conds) or [z] * len(conds))
    for words in (True, False):
        distil(replace(small_case, view_words=words, config=replace_settings(small_case.config, steps=1)))
    lengths = [max(len(cond.bias) for cond in conds) for conds in (asked[len(asked) // 2 - 1], asked[-1])]
    assert lengths[0] == lengths[1] + 1  # "front" and so on


@dataclass(frozen=True)
class Diverging(Guidance):
    pixel_limit = math.inf

    def gradient(self, prior, z0, conds, progress, generator):
        return torch.full_like(z0, math.nan if progress else 0.0)


def test_a_run_that_diverges_keeps_its_last_good_splat(small_case):
    splats, facts = distil(replace(small_case, guidance=Diverging()))
    assert facts["steps"] == 1 and "step 2 of 2" in facts["stopped"]
    assert torch.isfinite(splats.means).all()


def test_faced_are_the_kinds_that_look_different_turned_round():
    points = 0.6 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kind, name in enumerate(KINDS):
        pairs = [
            (shapes.surface(kind, x, y, z), shapes.surface(kind, -x, y, -z)) for x, y, z in points.tolist()
        ]
        share = sum(abs(a[0] - b[0]) > 0.02 or a[1] != b[1] for a, b in pairs) / len(pairs)
        assert (share > 0.05) == (name in running.FACED), f"{name}: {share:.1%} of the points differ"


def test_a_thing_whose_back_is_its_front_has_no_faces(small_case):
    splats = small_case.start.splats(0)
    facts = {"evaluations": 0, "seconds": 0.0, "steps": 0, "stopped": None}
    assert running.measure(splats, parse("a pink cube"), facts).faces is None


@pytest.mark.parametrize("kind", running.FACED)
def test_truth_blur_and_two_fronts_measure_as_such(kind):
    truth = score.truth(parse(f"a green {kind}"), running.VIEWS)
    assert measures.ssim(truth.rgb, truth.rgb) == pytest.approx(1)
    assert measures.sharpness(truth.rgb, truth.rgb) == pytest.approx(1)
    assert measures.color_error(truth.rgb, truth.mask, truth.rgb, truth.mask) == 0
    faces = lambda rgb: measures.faces(rgb, truth.rgb, truth.mask)
    pooled = torch.nn.functional.avg_pool2d(
        truth.rgb.movedim(-1, 1), 9, 1, 4, count_include_pad=False
    ).movedim(1, -1)
    assert faces(truth.rgb) == pytest.approx(0, abs=1e-4)
    assert faces(pooled) == pytest.approx(0, abs=0.2)
    assert faces(truth.rgb.mean(0, keepdim=True).expand_as(truth.rgb)) == pytest.approx(0, abs=1e-4)
    assert faces(truth.rgb.roll(running.VIEWS // 2, 0)) == pytest.approx(1, abs=1e-4)


def test_the_table_is_aligned_markdown_of_the_means(small_case):
    other = replace(small_case, seed=4)
    cone = replace(small_case, label="sds", prompt="a yellow cone")
    rows = report.summaries(
        {
            small_case: RESULT,
            other: replace(RESULT, psnr=10.0, faces=None, evaluations=2000),
            cone: replace(RESULT, faces=None),
        }
    )
    assert rows["ism"]["psnr"] == 15 and rows["ism"]["worst psnr"] == 10 and rows["ism"]["cases"] == 2
    assert rows["ism"]["faces"] == 0.2 and rows["sds"]["faces"] is None
    lines = report.table(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].strip("|").split("|")][:3] == ["ism", "15.00", "0.900"]
    assert " - |" in lines[3] and "1,500" in lines[2]
    assert list(report.brief(rows)["ism"]) == [
        "psnr",
        "ssim",
        "iou",
        "sharpness",
        "faces",
        "color",
        "mud",
        "fog",
        "score",
        "evaluations",
        "seconds",
        "cases",
    ]
