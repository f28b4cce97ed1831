"""Lucid Score, Lucid Seeds, Lucid Best Of and Lucid Compare in the real host."""

import json

import numpy as np
import pytest
import torch

from demo import splats, world
from demo.prior import DemoPrior
from lucid_core.io import ply
from lucid_core.rasterize import Renderer
from lucid_core.score.chart import HEIGHT, WIDTH
from lucid_core.score.classifier import JudgeSettings, judge
from lucid_core.score.views import turntable_views

from .failing import fails
from .graphs import Graph, image, node_of, workflow
from .test_image_prompt import PictureGraph

PROMPT, SIZE, SETTINGS = "a blue snowman", 128, JudgeSettings(4, 32)
ASKED = {"views": 4, "max_evaluations": 32, "resolution": SIZE, "elevation": 15.0, "seed": 7}
LOADED = {
    "model_file": "lucid/snowman_00001_.ply [output]",
    "viewport_state": "",
    "width": 512,
    "height": 512,
}


@pytest.fixture(scope="module")
def snowman(base):
    """A splat of the truth, as a file in the output folder."""
    path = base / "output" / "lucid" / "snowman_00001_.ply"
    path.parent.mkdir(exist_ok=True)
    made = splats.splat_of(world.parse(PROMPT), 2000)
    ply.write(path, made)
    return made


class ScoreGraph(Graph):
    """The checkpoint, a prompt, and what is scored."""

    def __init__(self, **prompt):
        full = workflow(LucidPrompt={"text": PROMPT, **prompt})
        self.loader, self.prompt = node_of(full, "CheckpointLoaderSimple"), node_of(full, "LucidPrompt")
        super().__init__({self.loader: full[self.loader], self.prompt: full[self.prompt]})

    def splat(self):
        file = self.add("Load3DAdvanced", **LOADED)
        return [self.add("File3DToSplat", model_3d=[file, 0]), 0]

    def score(self, **inputs):
        given = {"model": [self.loader, 0], "vae": [self.loader, 2], "prompt": [self.prompt, 0], **ASKED}
        return self.add("LucidScore", **{**given, **inputs})

    def show(self, link):
        return self.add("PreviewAny", source=link)


def text_of(entry, node):
    return entry["outputs"][node]["text"]


@pytest.fixture(scope="module")
def scored(client, snowman):
    """The entry of a score, and its numbers: score, rate, report, chart."""
    graph = ScoreGraph()
    node = graph.score(splat=graph.splat())
    shown = [graph.show([node, slot]) for slot in range(3)]
    chart = graph.save_image([node, 3])
    entry = client.run(graph)
    score, rate, report = (text_of(entry, name)[0] for name in shown)
    return float(score), float(rate), json.loads(report), image(client, entry, chart)


def test_the_host_asks_the_model_as_the_demo_prior_is_asked(scored, snowman):
    """The checkpoint's and the narrow network's predictions are the same."""
    score, rate, report, chart = scored
    prior = DemoPrior()
    views, _ = turntable_views(snowman, 4, SIZE, 15.0, Renderer("numba"))
    verdict = judge(prior, views, prior.prompts(PROMPT), SETTINGS, seed=7)
    means = [list(view["log_errors"].values()) for view in report["views"]]
    assert torch.allclose(torch.tensor(means), verdict.log_errors.mean(0).float(), atol=0.02)
    assert score == pytest.approx(verdict.score, abs=0.02)
    assert report["score"] == pytest.approx(score, abs=1e-4) and report["many_faces_rate"] == rate
    assert report["evaluations"] == 32 and report["measures"]["splats"] == 2000
    assert chart.shape == (1, HEIGHT, WIDTH, 3) and chart.std() > 0.1


def test_views_are_scored_as_their_splat_is(client, scored):
    graph = ScoreGraph()
    render = graph.add(
        "LucidRender",
        splat=graph.splat(),
        width=SIZE,
        height=SIZE,
        frames=8,
        azimuth=0.0,
        elevation=15.0,
        fov=30.0,
        background="#ffffff",
    )
    shown = graph.show([graph.score(image=[render, 0]), 0])
    assert float(text_of(client.run(graph), shown)[0]) == pytest.approx(scored[0], abs=0.01)


def test_a_wrong_prompt_scores_less_and_other_texts_say_so(client, scored):
    graph = ScoreGraph(text="a red cube")
    texts = {"other_texts": "a blue snowman | a green mug", "clip": [graph.loader, 1], "max_evaluations": 48}
    shown = graph.show([graph.score(splat=graph.splat(), **texts), 2])
    report = json.loads(text_of(client.run(graph), shown)[0])
    assert report["score"] < scored[0] - 0.1
    assert report["margins"]["a blue snowman"]["mean"] < 0
    assert report["margins"]["a blue snowman"]["mean"] < report["margins"]["a green mug"]["mean"]
    assert list(report["margins"]) == ["negative", "a blue snowman", "a green mug"]


def test_a_clip_vision_compares_the_views_with_the_front(client, scored):
    graph = ScoreGraph()
    encoder = [graph.add("LucidTestZero123", width=64), 1]
    shown = graph.show([graph.score(splat=graph.splat(), clip_vision=encoder), 2])
    views = json.loads(text_of(client.run(graph), shown)[0])["views"]
    found = [view["similarity"] for view in views]
    assert found[0] == pytest.approx(1, abs=1e-3) and all(-1 <= cosine <= 1.001 for cosine in found)
    assert len(found) == 4


def test_the_best_of_several_seeds_goes_on(client):
    """Every node after the seeds runs once per seed; Lucid Best Of takes all results."""
    graph = ScoreGraph()
    seeds = graph.add("LucidSeeds", first_seed=3, count=3)
    cloud = graph.add(
        "LucidPointCloud",
        shape="ball",
        count=300,
        size=1.2,
        color="#808080",
        seed=[seeds, 0],
        color_noise=0.3,
        opacity=0.9,
    )
    score = graph.score(splat=[cloud, 0], resolution=64)
    best = graph.add("LucidBestOf", splat=[cloud, 0], score=[score, 0], size=64)
    scores, index, chosen = (graph.show(link) for link in ([score, 0], [best, 1], [best, 2]))
    sheet = graph.save_image([best, 3])
    count = graph.save_image([graph.add("LucidRender", splat=[best, 0], **RENDER), 0])
    entry = client.run(graph)
    found = [float(text) for text in text_of(entry, scores)]
    assert len(found) == 3 == len(set(found))
    assert int(text_of(entry, index)[0]) == int(np.argmax(found))
    assert float(text_of(entry, chosen)[0]) == max(found)
    (picture,) = image(client, entry, sheet)
    assert picture.shape[1] == 4 * 64 and picture.shape[0] > 3 * 64
    assert len(image(client, entry, count)) == 1  # what follows runs once


RENDER = {
    "width": 64,
    "height": 64,
    "frames": 1,
    "azimuth": 0.0,
    "elevation": 0.0,
    "fov": 35.0,
    "background": "#ffffff",
}


def cloud_of(graph, seed, opacity):
    given = {"shape": "ball", "count": 300, "size": 1.2, "color": "#2040ff", "color_noise": 0.0}
    return [graph.add("LucidPointCloud", seed=seed, opacity=opacity, **given), 0]


def test_splats_are_compared_side_by_side_and_the_model_prefers_one(client, snowman):
    graph = ScoreGraph()
    parts = [graph.splat(), cloud_of(graph, 0, 0.9)]
    reports = [[graph.score(splat=part), 2] for part in parts]
    node = graph.add(
        "LucidCompare",
        labels="ball | truth",
        frames=3,
        size=96,
        **{f"splats.splat{i}": part for i, part in enumerate(reversed(parts))},
        **{f"reports.report{i}": report for i, report in enumerate(reversed(reports))},
    )
    pictures, preferred = graph.save_image([node, 0]), graph.show([node, 1])
    alone = graph.add(
        "LucidCompare", labels="", frames=2, size=96, **{f"splats.splat{i}": p for i, p in enumerate(parts)}
    )
    nothing, two = graph.show([alone, 1]), graph.save_image([alone, 0])
    sheet, short = graph.save_image([node, 2]), graph.save_image([alone, 2])
    entry = client.run(graph)
    assert text_of(entry, preferred) == ["truth"] and text_of(entry, nothing) == [""]
    frames = image(client, entry, pictures)
    assert frames.shape[0] == 3 and frames.shape[2] == 2 * 96 and frames.shape[1] > 96
    assert image(client, entry, two).shape[0] == 2
    rows, frame = image(client, entry, sheet), frames[0]
    assert rows.shape == (1, 2 * frame.shape[0], 3 * 96, 3)  # a row of its three views for each splat
    np.testing.assert_allclose(rows[0, :96, :96], frame[:96, :96])
    np.testing.assert_allclose(rows[0, frame.shape[0] :][:96, 96:192], frames[1][:96, 96:])
    assert image(client, entry, short).shape[2] == 2 * 96


@pytest.mark.parametrize(
    "change, kind, name",
    [
        ({"max_evaluations": 31}, "BadSetting", "max_evaluations is 31"),
        ({"other_texts": "a cup | a cup"}, "BadSetting", "other_texts is "),
        ({"other_texts": "a cup", "max_evaluations": 40}, "BadInput", "clip is missing"),
        ({"views": 3}, "value_smaller_than_min", "views"),
    ],
)
def test_bad_values_are_refused(client, snowman, change, kind, name):
    graph = ScoreGraph()
    graph.show([graph.score(splat=graph.splat(), **change), 0])
    with fails("LucidScore", kind, name):
        client.run(graph)


def test_a_prompt_without_words_for_the_views_is_refused(client, snowman):
    graph = ScoreGraph(front="", side="", back="")
    graph.show([graph.score(splat=graph.splat()), 0])
    with fails("LucidScore", "BadInput", "prompt has the same text for front, side and back"):
        client.run(graph)


def test_a_picture_as_prompt_is_refused(client):
    graph = PictureGraph()
    sockets = {"model": graph.model, "vae": graph.vae, "prompt": graph.prompt()}
    splat = cloud_of(graph, 0, 0.9)
    graph.add("PreviewAny", source=[graph.add("LucidScore", splat=splat, **sockets, **ASKED), 0])
    with fails("LucidScore", "BadInput", "prompt is a picture"):
        client.run(graph)


def test_a_model_of_few_noise_levels_is_refused(client, snowman):
    graph = ScoreGraph()
    lcm = graph.add("ModelSamplingDiscrete", model=[graph.loader, 0], sampling="lcm", zsnr=False)
    graph.show([graph.score(splat=graph.splat(), model=[lcm, 0]), 0])
    with fails("LucidScore", "BadInput", "model is sampled as LCM"):
        client.run(graph)


@pytest.mark.parametrize(
    "frames, height, name",
    [(3, SIZE, "image has 3 views"), (4, 64, "image is 128 x 64 pixels")],
)
def test_views_that_are_no_turntable_are_refused(client, snowman, frames, height, name):
    graph = ScoreGraph()
    size = {**RENDER, "width": SIZE, "height": height, "frames": frames}
    graph.show([graph.score(image=[graph.add("LucidRender", splat=graph.splat(), **size), 0]), 0])
    with fails("LucidScore", "BadInput", name):
        client.run(graph)


def test_a_splat_and_views_or_neither_are_refused(client, snowman):
    for with_both, name in ((True, "are both connected"), (False, "are both missing")):
        graph, inputs = ScoreGraph(), {}
        if with_both:
            splat = graph.splat()
            inputs = {"splat": splat, "image": [graph.add("LucidRender", splat=splat, **RENDER), 0]}
        graph.show([graph.score(**inputs), 0])
        with fails("LucidScore", "BadInput", f"splat and image {name}"):
            client.run(graph)


def test_scores_and_reports_that_do_not_belong_to_the_splats_are_refused(client):
    graph = ScoreGraph()
    number = graph.add("PrimitiveFloat", value=1.0)
    clouds = [graph.add("LucidSeeds", first_seed=0, count=2), 0]
    splat = graph.add(
        "LucidPointCloud", shape="ball", count=100, size=1.0, color="#808080", seed=clouds, color_noise=0.0,
        opacity=0.9,
    )  # fmt: skip
    graph.show([graph.add("LucidBestOf", splat=[splat, 0], score=[number, 0], size=64), 1])
    with fails("LucidBestOf", "BadInput", "score has 1 numbers for 2 splats"):
        client.run(graph)
    graph = ScoreGraph()
    parts = {f"splats.splat{i}": cloud_of(graph, i, 0.5) for i in range(2)}
    text = [graph.add("PrimitiveString", value="{}"), 0]
    reports = {f"reports.report{i}": text for i in range(2)}
    graph.show([graph.add("LucidCompare", labels="", frames=1, size=64, **parts, **reports), 1])
    with fails("LucidCompare", "BadInput", "reports hold something else"):
        client.run(graph)
