"""What is killed, cancelled or broken goes on as if nothing had been: bit for bit."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from raising import raises
from safetensors.torch import save_file
from same import same

from lucid_core.cameras import CameraRanges
from lucid_core.errors import BadFile, NoGaussiansLeft, OtherRun, UnfinishedStep
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.mixing import CONSTANT
from lucid_core.optimize import checkpoint as module
from lucid_core.optimize.checkpoint import Checkpoint, changing, read, require_same, settings_of, write
from lucid_core.optimize.densify import Densify
from lucid_core.settings import NO_GROWTH, replace_settings
from lucid_core.starts.shapes import PointCloud

from .scenes import (
    CAMERAS,
    CONFIG,
    GROWING,
    MCMC,
    METHOD,
    WishPrior,
    dream,
    prompts_of_a_disc,
    same_end,
    splats,
)

SHORT = replace_settings(
    CONFIG, steps=20, densify=GROWING, scale_weight=1.0, background_share=0.66, flip_share=0.5
)


def steps_of(config=SHORT, method=METHOD, resume=None, prior=None, count=300):
    start, prior = splats(count), prior or WishPrior()
    return dream(start, prior, method, prompts_of_a_disc(), CAMERAS, config, seed=3, resume=resume)


@pytest.mark.parametrize(
    "changes, method",
    [
        ({}, METHOD),
        ({"densify": MCMC}, METHOD),
        ({"sh_degree": 2, "sh_every": 0.3}, METHOD),
        ({}, dataclasses.replace(METHOD, fix_noise=True, eta=0.3)),
    ],
    ids=["growing", "mcmc", "bands", "fixed noise"],
)
def test_a_resumed_run_is_the_run(tmp_path, changes, method):
    """From the first, from some and from the last step, by way of the file; splats come and go in between."""
    config, files = replace_settings(SHORT, **changes), {}
    for last in steps_of(config, method):
        if last.step in (1, 9, 20):
            files[last.step] = tmp_path / f"{last.step}.safetensors"
            write(files[last.step], last.checkpoint(), {})
    assert len(last.splats) != 300 or changes.get("sh_degree")
    for step, file in files.items():
        first, *rest = [first for first in steps_of(config, method, read(file)[0])]
        assert first.step == step and len(rest) == 20 - step
        assert same_end(rest[-1] if rest else first, last)


def test_a_checkpoint_counts_the_time_that_was_spent():
    first = next(steps_of())
    resumed = steps_of(resume=dataclasses.replace(first.checkpoint(), seconds=1000.0))
    assert next(resumed).seconds == 1000.0 and 1000 < next(resumed).seconds < 1100


def test_a_run_that_is_stopped_within_a_model_call_goes_on_from_its_last_step():
    class Stopped(BaseException):
        pass

    class Stops(WishPrior):
        def denoise(self, z, sigma, conds):
            if self.evaluations > 50:
                raise Stopped
            return super().denoise(z, sigma, conds)

    done = []
    with pytest.raises(Stopped):
        done.extend(steps_of(prior=Stops()))
    last = done[-1]
    assert 1 < last.step < 20
    *_, resumed = steps_of(resume=last.checkpoint())
    *_, whole = steps_of()
    assert same_end(resumed, whole)


def test_half_a_step_is_no_checkpoint():
    done, prune = (
        [],
        Densify(start=0.0, every=0.2, grow_grad2d=NO_GROWTH, prune_opacity=0.999, reset_every=0.0),
    )
    with pytest.raises(NoGaussiansLeft) as error:
        done.extend(steps_of(replace_settings(SHORT, densify=prune)))
    assert error.value.step == done[-1].step + 1
    with raises(UnfinishedStep, step=done[-1].step + 1):
        done[-1].checkpoint()


def run_until_killed(file, steps):
    """A checkpoint after every step. The kernel ends the process after so many of its steps' time, as SIGKILL
    would.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    for step in steps_of():
        write(file, step.checkpoint(), {})
        if step.step == 2:
            signal.setitimer(signal.ITIMER_REAL, steps * (time.perf_counter() - start))
        start = time.perf_counter()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a quick start of many processes")
def test_twenty_killed_runs_each_go_on_to_the_same_end(tmp_path, monkeypatch):
    """At random moments, most of them inside a step or a write."""
    monkeypatch.syspath_prepend(
        Path(__file__).parents[__name__.count(".")]
    )  # the child imports this file by its name here
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        *_, whole = steps_of()
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(
            ["pytest", "lucid_core.optimize.loop", "gsplat.strategy", "tests.support.warm"]
        )
        chance, reached = random.Random(0), []

        def killed(i, steps):
            """The file of a child that was killed."""
            file = tmp_path / f"{i}.safetensors"
            child = processes.Process(target=run_until_killed, args=(file, steps))
            child.start()
            child.join()
            assert child.exitcode in (-signal.SIGALRM, 0)
            return file

        with ThreadPoolExecutor(1) as next_one:  # while the one before is resumed here
            for file in next_one.map(killed, range(20), [chance.uniform(0.01, 17) for _ in range(20)]):
                checkpoint, _ = read(file)
                reached.append(checkpoint.step)
                *_, last = steps_of(resume=checkpoint)
                assert same_end(last, whole)
        assert len(set(reached)) > 5
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint's file."""
    file = tmp_path_factory.mktemp("good") / "run.safetensors"
    write(file, next(steps_of()).checkpoint(), {"seed": 3})
    return file


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.99, 0.99999])
def test_a_truncated_file_is_refused(tmp_path, good, share):
    content = good.read_bytes()
    file = tmp_path / "cut.safetensors"
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadFile, match="damaged or no checkpoint") as error:
        read(file)
    assert error.value.path == file


def test_foreign_and_newer_and_incomplete_files_are_refused(tmp_path, good):
    file = tmp_path / "other.safetensors"
    file.write_text("ply\nformat binary_little_endian 1.0\n")
    with pytest.raises(BadFile, match="damaged or no checkpoint"):
        read(file)
    save_file({"a": torch.zeros(3)}, file)
    with pytest.raises(BadFile, match="no checkpoint of Lucid Dream"):
        read(file)
    tensors = read(good)[0].tensors
    numbers = {"step": 1, "at": 1, "evaluations": 3, "seconds": 1.0, "losses": {}}
    header = {"format": 2, **numbers, "settings": {}}

    def rewritten(tensors=tensors, **changes):
        save_file(tensors, file, {module.HEADER: json.dumps({**header, **changes})})
        return file

    assert read(rewritten())[0].step == 1
    with pytest.raises(BadFile, match="format 3"):
        read(rewritten(format=3))
    for missing in ("generator", "params.quats"):
        with pytest.raises(BadFile, match=f"damaged.*{missing.split('.')[-1]}"):
            read(rewritten({name: value for name, value in tensors.items() if name != missing}))
    save_file(tensors, file, {module.HEADER: json.dumps({"format": 2, "settings": {}})})
    with pytest.raises(BadFile, match=r"damaged.*step"):
        read(file)


def test_a_file_of_format_1_is_read_with_the_names_of_today(tmp_path, good):
    """There, all settings of the optimiser were of one class, and a step had one loss."""
    checkpoint, file = read(good)[0], tmp_path / "old.safetensors"
    old = {
        "DreamConfig.steps": 7,
        "DreamConfig.lr_sh": [0.1, 0.2],
        "DreamConfig.densify.stop": 0.5,
        "ISM.cfg": 3,
        "first.Mix.share": 0.5,
    }
    header = {"format": 1, "step": 1, "at": 1, "loss": 0.5, "evaluations": 3, "seconds": 1.0, "settings": old}
    tensors = checkpoint.tensors | {"replay.asked": torch.tensor(2)}
    save_file(tensors, file, {module.HEADER: json.dumps(header)})
    found, settings = read(file)
    assert settings == {
        "Budget.steps": 7,
        "LearningRates.lr_sh": [0.1, 0.2],
        "Densify.stop": 0.5,
        "ISM.cfg": 3,
        "first.Mix.share": 0.5,
        "first.Mix.share_last": CONSTANT,
    }
    assert found.losses == {} and int(found.group("replay")["rounds"]) == 2
    assert same(found.splats(), checkpoint.splats())


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, good, monkeypatch):
    file = tmp_path / "run.safetensors"
    file.write_bytes(good.read_bytes())

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(file, read(good)[0], {})
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"] and read(file)[1] == {"seed": 3}


def test_what_differs_from_the_checkpoints_run_is_listed(tmp_path, good):
    start, cameras = PointCloud(count=100).splats(0), CameraRanges()
    settings = settings_of(start, 3, SHORT, cameras, ISM(), prompt="a red ball")
    file = tmp_path / "run.safetensors"
    write(file, read(good)[0], settings)
    saved = read(file)[1]
    assert saved == settings
    require_same(
        saved, settings_of(start, 3, dataclasses.replace(SHORT), CameraRanges(), ISM(), prompt="a red ball")
    )
    moved = dataclasses.replace(start, means=start.means.nextafter(start.means + 1))
    dense = replace_settings(SHORT, densify=dataclasses.replace(GROWING, stop=0.8))
    with pytest.raises(OtherRun) as error:
        require_same(saved, settings_of(moved, 4, dense, cameras, ISM(cfg=5.0), prompt="a red cube"))
    differences = dict(error.value.differences)
    then, now = differences.pop("start")
    assert then != now and differences == {
        "seed": (3, 4),
        "Densify.stop": (0.9, 0.8),
        "ISM.cfg": (7.5, 5.0),
        "prompt": ("a red ball", "a red cube"),
    }


def test_its_splat_can_be_taken_alone(good):
    checkpoint, _ = read(good)
    assert isinstance(checkpoint, Checkpoint)
    assert same(checkpoint.splats(), next(steps_of()).splats)
    assert same(next(steps_of(resume=checkpoint)).splats, checkpoint.splats())


def test_what_changes_in_a_run_is_no_setting():
    begun = {"seed": 1, "patch a: scale": "11", "patch a: seen": "22"}
    saved = changing(begun, {"patch a: scale": "11", "patch a: seen": "33"})
    require_same(saved, begun | {"patch a: seen": "44"})
    for now, name in (
        ({**begun, "patch a: scale": "12"}, "patch a: scale"),
        ({"seed": 1, "patch a: scale": "11"}, "patch a: seen"),
        ({**begun, "seed": 2}, "seed"),
    ):
        with raises(OtherRun, differences={name: (saved[name], now.get(name))}):
            require_same(saved, now)
