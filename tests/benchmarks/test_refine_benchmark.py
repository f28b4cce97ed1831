"""The demonstrations of refining and restyling: their parts. The whole takes minutes: `python -m benchmarks
refine`.
"""

from dataclasses import replace

import pytest

from benchmarks import refine
from demo import world
from lucid_core.guidance.image_targets import PRESETS as TARGETS
from lucid_core.optimize.config import PRESETS, Task
from lucid_core.optimize.gaussians import Gaussians
from lucid_core.optimize.schedule import REPAINT, set_learning_rates
from lucid_core.rasterize import Renderer
from lucid_core.starts.shapes import PointCloud


def test_half_of_the_gaussians_are_broken_a_third_of_that_missing():
    whole = PointCloud(count=600).splats(0)
    broken = refine.broken(whole, seed=0)
    assert len(broken) == 500
    same = {tuple(mean): tuple(color) for mean, color in zip(whole.means.tolist(), whole.sh[:, 0].tolist())}
    moved = [tuple(mean) not in same for mean in broken.means.tolist()]
    recolored = [
        same.get(tuple(m), tuple(c)) != tuple(c)
        for m, c in zip(broken.means.tolist(), broken.sh[:, 0].tolist())
    ]
    assert sum(moved) == sum(recolored) == 100


def test_the_settings_are_those_of_the_workflows():
    restyle, mend = refine.settings_of("restyle_splat"), refine.settings_of("refine_splat")
    assert restyle.guidance == replace(
        TARGETS["cpu"], cfg=2.0, t_last=0.08, fits=80, rate=0.7, inversion_steps=2, sampling_steps=4
    )
    assert restyle.config.task == Task(freeze_geometry=True)
    assert (restyle.config.budget.steps, restyle.config.budget.views) == (500, 1)
    assert not mend.config.task.freeze_geometry and 0.3 < mend.config.task.strength < 1
    assert mend.config.optimizer == PRESETS["cpu"].optimizer


def test_the_measures_of_a_fitted_splat(tmp_path, monkeypatch):
    monkeypatch.setattr(refine, "FOLDER", tmp_path)
    monkeypatch.setattr(refine, "FIT_STEPS", 40)
    thing = world.parse("a blue mushroom")
    splats, rows = refine.fitted(thing, count=1500), []
    found = refine.reported("fit", thing, {"it": splats}, splats, lambda name, row: rows.append(name))
    assert rows == ["fit: it"] and found["fit: it"]["psnr"] > 15 and found["fit: it"]["kept"] == 1
    red = refine.reported("red", world.parse("a red mushroom"), {"it": splats}, splats, None)
    assert found["fit: it"]["color"] < 0.1 < red["red: it"]["color"]
    assert {path.name for path in tmp_path.iterdir()} == {"fit.png", "fit_it.ply", "red.png", "red_it.ply"}


def test_frozen_geometry_repaints_boldly():
    config = refine.settings_of("restyle_splat").config
    run = Gaussians(PointCloud(count=10).splats(0), config, Renderer("numba"))
    rate, rates = lambda: run.optimizers["sh0"].param_groups[0]["lr"], config.optimizer.rates
    assert set(run.optimizers) == {"sh0", "shN"}
    set_learning_rates(run.optimizers, rates, config.task, 0.0)
    assert rate() == REPAINT * rates.lr_sh[0]
    set_learning_rates(run.optimizers, rates, config.task, 1.0)
    assert rate() == pytest.approx(rates.lr_sh[1])
