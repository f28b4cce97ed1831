"""The benchmark of the fit to views, at toy size."""

import json

from benchmarks import views


def test_it_prints_what_it_measured(capsys):
    views.main(as_json=True, steps=2, prompt="a red mushroom")
    row = json.loads(capsys.readouterr().out)
    assert set(row) == {"psnr", "seconds", "splats", "views"} and row["views"] == 24


def test_its_pictures_are_seen_by_its_cameras():
    """The centre of the object is at the centre of every picture."""
    shots = views.pictures_of("a red ball", views=3, size=32)
    ys, xs = shots.images.new_tensor(range(32)), shots.images.new_tensor(range(32))
    for mask in shots.masks:
        assert abs((mask.sum(0) * xs).sum() / mask.sum() - 15.5) < 0.5
        assert abs((mask.sum(1) * ys).sum() / mask.sum() - 15.5) < 0.5
