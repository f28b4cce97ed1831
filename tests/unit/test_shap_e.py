"""Text to a mesh by diffusers' real Shap-E pipeline, with few random weights (see tiny_shap_e)."""

import dataclasses
import json
import math
import shutil
import socket

import pytest
import torch
from raising import raises
from tiny_shap_e import COLOR_SLOPE, RADII, save

from lucid_core.cameras import orbit
from lucid_core.errors import BadFile, BadSetting
from lucid_core.rasterize import rasterize
from lucid_core.starts import shap_e
from lucid_core.starts.mesh import sample_surface
from lucid_core.starts.points import AXES, Start
from lucid_core.starts.shap_e import ShapE

SMALL = ShapE(steps=3, grid=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("diffusers")
    return save(tmp_path_factory.mktemp("shap-e"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return shap_e.load(folder, half=False)


@pytest.fixture(scope="module")
def mesh(pipeline):
    return SMALL.mesh(pipeline, "a red chair", 0, lambda done: None)


def test_the_surface_is_in_the_worlds_axes(mesh):
    """Of the ellipsoid in Shap-E's axes (z up): x stays, its z is our height, its y our depth. Colours
    likewise.
    """
    extent = (mesh.vertices.amax(dim=0) - mesh.vertices.amin(dim=0)) / 2
    torch.testing.assert_close(extent, RADII[[0, 2, 1]], atol=0.06, rtol=0)
    points, colors, _ = sample_surface(mesh, 4000, torch.Generator().manual_seed(0))
    expected = (COLOR_SLOPE * points @ AXES["z up"] / RADII).sigmoid()
    assert (colors - expected).abs().mean() < 0.03


def test_our_front_view_is_shap_es_own_first_view(pipeline, mesh, monkeypatch):
    """The first of Shap-E's own cameras, by its own renderer of its radiance field, against our splats seen
    from azimuth 0.
    """
    from diffusers.pipelines.shap_e import renderer

    cameras = renderer.create_pan_cameras(64)
    first = {axis: getattr(cameras, axis)[:1] for axis in ("origin", "x", "y", "z")}
    monkeypatch.setattr(
        renderer, "create_pan_cameras", lambda size: dataclasses.replace(cameras, **first, shape=(1, 1))
    )
    latents = pipeline(
        "a red chair",
        num_inference_steps=3,
        guidance_scale=15.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    theirs = pipeline.shap_e_renderer.decode_to_image(latents, "cpu", size=64)[0]
    points, colors, normals = sample_surface(mesh, 20_000, torch.Generator().manual_seed(0))
    splats = Start(size=0, opacity=0.5, thickness=0.1).splats(points, colors, 0, normals)
    one = torch.ones(1)
    camera = orbit(0 * one, math.atan(0.5) * one, 4 * one, 0.7 * one, 64, 64)
    ours = rasterize(splats, camera, 64, 64, background=torch.ones(3)).rgb[0]
    seen = lambda image: image.mean(-1) < 0.75
    both = seen(ours) & seen(theirs)
    assert both.sum() / (seen(ours) | seen(theirs)).sum() > 0.7 and (theirs - ours)[both].abs().mean() < 0.05
    assert (theirs.flip(1) - ours)[both].abs().mean() > 0.15 < (theirs.flip(0) - ours)[both].abs().mean()


def test_the_same_seed_gives_the_same_mesh_and_another_does_not(pipeline, mesh):
    again, other = (SMALL.mesh(pipeline, "a red chair", seed, lambda done: None) for seed in (0, 1))
    assert torch.equal(mesh.vertices, again.vertices) and torch.equal(mesh.colors, again.colors)
    assert mesh.vertices.shape != other.vertices.shape or not torch.equal(mesh.vertices, other.vertices)


def test_progress_goes_to_its_end_and_can_stop(pipeline):
    seen = []
    SMALL.mesh(pipeline, "a chair", 0, seen.append)
    assert seen[0] == 1 and seen[-1] == SMALL.evaluations and seen == sorted(seen)

    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SMALL.mesh(pipeline, "a chair", 0, stop)
    assert not pipeline.prior._forward_hooks and not pipeline.shap_e_renderer.mlp._forward_hooks


def test_it_works_offline(folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(shap_e.networks_of(shap_e.load(folder, half=False))) == 3


def test_half_precision_keeps_the_decoder_whole(folder):
    pipeline = shap_e.load(folder, half=True)
    assert pipeline.prior.dtype == pipeline.text_encoder.dtype == torch.float16
    assert pipeline.shap_e_renderer.dtype == torch.float32
    assert len(SMALL.mesh(pipeline, "a chair", 0, lambda done: None).faces) > 100


def test_half_precision_files_are_found(folder, tmp_path):
    shap_e.load(folder, half=False).save_pretrained(tmp_path, variant="fp16")
    assert len(shap_e.networks_of(shap_e.load(tmp_path, half=False))) == 3


def test_the_hubs_cache_is_read(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert shap_e.in_hub_cache() is None
    repository = tmp_path / "models--openai--shap-e"
    shutil.copytree(folder, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd", encoding="utf-8")
    assert shap_e.is_pipeline(shap_e.in_hub_cache())


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    with pytest.raises(BadFile, match="ShapEPipeline") as error:
        shap_e.load(tmp_path, half=False)
    assert error.value.path == tmp_path
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline"}), encoding="utf-8"
    )
    assert not shap_e.is_pipeline(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    next((broken / "prior").glob("*.safetensors")).unlink()
    with pytest.raises(BadFile, match="not complete") as error:
        shap_e.load(broken, half=False)
    assert error.value.path == broken


def test_an_empty_surface_or_text_is_said(pipeline, folder):
    with raises(BadSetting, name="text", value="empty"):
        SMALL.mesh(pipeline, "  ", 0, lambda done: None)
    empty = shap_e.load(folder, half=False)
    with torch.no_grad():
        empty.shap_e_renderer.mlp.mlp[6].bias[0] = -10.0
    with raises(BadSetting, name="the shape for this text", value="empty"):
        SMALL.mesh(empty, "a chair", 0, lambda done: None)
