"""The benchmark of the fit to views, at toy size."""

import json

import torch

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


def test_files_in_the_layout_of_nerf_synthetic_come_back_as_they_were():
    read, number = views.synthetic_of("a red ball", views=5, size=32), torch.Generator().manual_seed(0)
    azimuth, height = torch.rand(2, 5, generator=number)
    positions = read.cameras.positions()
    assert (positions[:, 1] < 0).all()  # from above; up is -y
    torch.testing.assert_close(positions[:, 1], -views.RADIUS * height)
    torch.testing.assert_close(positions.norm(dim=-1), torch.full((5,), views.RADIUS))
    true = views._look("a red ball", 6.283185307 * azimuth, height.asin(), 32)
    torch.testing.assert_close(read.cameras.viewmats, true.cameras.viewmats, atol=1e-5, rtol=0)
    torch.testing.assert_close(read.cameras.Ks, true.cameras.Ks)
    torch.testing.assert_close(read.images, true.images, atol=1.5 / 255, rtol=0)  # colour and alpha of 8 bits


def test_the_other_recipe_ends_once_it_scores_as_well(monkeypatch):
    monkeypatch.setattr(views, "SCORED_EVERY", 2)
    shots = views.pictures_of("a red ball", views=12, size=32)
    fitted, held_out = shots.divide(6)
    start = views.PointCloud(count=200, size=1.6).splats(0)
    run = lambda wanted: views.run(start, fitted, held_out, views.GSPLAT_FIT, views.GSPLAT, 4, wanted)
    assert run(0.0)[2] < run(100.0)[2]  # after two steps, and after four


def test_a_limit_beyond_the_steps_of_the_recipe_ends_with_them():
    shots = views.pictures_of("a red ball", views=12, size=32)
    fitted, held_out = shots.divide(6)
    start = views.PointCloud(count=50, size=1.6).splats(0)
    config = views.replace_settings(views.PRESETS["cpu"], steps=2)
    assert len(views.run(start, fitted, held_out, views.FIT, config, most=5)[0])
