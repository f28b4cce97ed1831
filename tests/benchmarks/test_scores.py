"""The benchmark of the score: its splats, and how they are summed up."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks import scores
from benchmarks.scores import (
    DEFECTS,
    HEADINGS,
    PROMPTS,
    TWO_FACES,
    Row,
    area_under_roc,
    finished_in,
    made,
    summary,
)
from demo import splats, world
from lucid_core.io import ply


def test_there_are_forty_splats_with_all_defects(monkeypatch):
    monkeypatch.setattr(scores, "version_of", lambda thing, version: None)
    found = list(made(PROMPTS))
    versions = [version for _, version, _ in found]
    assert len(found) == 40 == len(set(found))
    assert versions.count(TWO_FACES) == 6 and versions.count("true") == 8
    assert all(versions.count(defect) >= 3 for defect in DEFECTS)


def test_defects_are_what_they_say():
    thing = world.parse("a blue snowman")
    true = splats.splat_of(thing, 500)
    twice = splats.two_faced(true)
    half = len(twice) // 2
    assert (twice.means[:half, 2] < 0).all()
    assert torch.equal(twice.means[half:], twice.means[:half] * torch.tensor([-1.0, 1, -1]))
    turned = splats.turned(splats.turned(true))
    assert torch.equal(turned.means, true.means * torch.tensor([-1.0, 1, -1]))
    assert torch.equal(splats.mirrored(splats.mirrored(true)).means, true.means)
    assert splats.other_kind(thing).kind != "snowman" and splats.other_color(thing).color != "blue"
    assert splats.other_color(thing).kind == "snowman" and splats.other_kind(thing).color == "blue"


ROW = Row("a green mug", "true", 20.0, 0.0, 2.0, -0.1, 0.02, 0.0, 288)


def test_the_summary_ranks():
    rows = [
        ROW,
        replace(ROW, psnr=18.0, score=1.5, second_face=0.1, faces=0.5, version=TWO_FACES),
        replace(ROW, psnr=12.0, score=1.0, second_face=-0.05, faces=0.1),
        replace(ROW, psnr=10.0, score=1.2, faces=None, evaluations=96),
    ]
    found = summary(rows)
    assert found == {
        "spearman": 0.8,
        "auc": 1.0,
        "evaluations": 288,
        "splats": 4,
        "spearman_faces": 1.0,
    }


def test_one_object_without_a_front_has_no_rank_correlation():
    found = summary([replace(ROW, faces=None)])
    assert all(math.isnan(found[name]) for name in ("spearman", "spearman_faces", "auc"))


@pytest.mark.parametrize(
    "positive, negative, area", [([1, 2], [0, 0.5], 1.0), ([0], [1], 0.0), ([1, 0], [0], 0.75)]
)
def test_the_area_under_the_roc(positive, negative, area):
    assert area_under_roc(positive, negative) == area


def test_finished_runs_are_named_by_their_prompt(tmp_path):
    ply.write(tmp_path / "a-green-mug-1-0123456789ab.ply", splats.splat_of(world.parse("a green mug"), 50))
    ((prompt, version, one),) = finished_in(tmp_path)
    assert (prompt, version, len(one)) == ("a green mug", "finished, seed 1", 50)


def test_the_command_prints_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(scores, "EACH", 2)
    monkeypatch.setattr(scores, "TRUE_VIEWS", 8)
    threads = torch.get_num_threads()
    scores.main(True, ["a green mug"], 96, None)
    torch.set_num_threads(threads)
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    headings, rule, *rows = printed.err.splitlines()
    assert len(rows) == 2 and {one.count("|") for one in (headings, rule, *rows)} == {len(HEADINGS) + 1}
    assert {"spearman", "auc", "evaluations", "splats"} <= found.keys()
    assert found["splats"] == 2 and found["evaluations"] == 96
    (tmp_path / "splat-1-0.ply").touch()
    with pytest.raises(SystemExit, match="splat-1-0"):
        list(finished_in(tmp_path))
    with pytest.raises(SystemExit, match="a grey elephant"):
        scores.main(True, ["a grey elephant"], 96, None)
