import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo import checkpoint, taesd, unet
from demo.padding import pad
from demo.prior import DemoCameraPrior, DemoPrior
from demo.words import BACKGROUNDS, COLORS, CONCEPTS, FILLER, KINDS, START, SYNONYMS, TOKENS, VIEWS
from devtools.fetch import find_host
from devtools.launch import needs_repair, repair_cpu_torch
from devtools.tree import Tree
from lucid_core.conditioning.picture import Picture, PictureView


@pytest.fixture(scope="module")
def prior() -> dict[str, torch.Tensor]:
    return load_file(checkpoint.PRIOR)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return checkpoint.write(tmp_path_factory.mktemp("checkpoint") / "models" / "demo.safetensors")


def part(prior, prefix):
    return {
        name.removeprefix(prefix): value.float() for name, value in prior.items() if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def host() -> None:
    """The host's modules, to be imported as they are; on the CPU where there is no GPU."""
    path = find_host(Tree(Path(__file__).resolve().parents[2]), os.environ.get("COMFYUI_PATH"))
    if path is None:
        pytest.skip("no ComfyUI is set up; run `python dev.py test`")
    sys.path.insert(0, str(path))
    if needs_repair():
        repair_cpu_torch()
    from comfy import options

    options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def test_the_token_table_is_the_hosts(host):
    from comfy.sd1_clip import SD1Tokenizer

    tokenizer = SD1Tokenizer()
    words = {word: word for word in (*KINDS, *COLORS, *VIEWS, *BACKGROUNDS)}
    words |= {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}
    expected = {49406: START}
    for word, concept in words.items():
        start, first = (token for token, _ in tokenizer.tokenize_with_weights(word)["l"][0][:2])
        assert start == 49406
        assert expected.setdefault(first, concept) == concept, f"{word!r} shares a token with another word"
    assert expected == TOKENS


def test_pad_puts_each_part_at_its_own_place():
    value = torch.arange(1.0, 6.0)
    assert pad(value, (8,)).tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert pad(value, (8,), {0: (2, 3)}).tolist() == [1, 2, 0, 0, 3, 4, 5, 0]
    matrix = pad(torch.ones(2, 4), (3, 6), {1: (2, 2)})
    assert matrix.tolist() == [[1, 1, 0, 1, 1, 0]] * 2 + [[0] * 6]
    with pytest.raises(ValueError, match="do not fill 5"):
        pad(value, (8,), {0: (2, 2)})


@torch.no_grad()
def test_the_padded_unet_computes_what_the_narrow_one_does(prior):
    state = part(prior, "unet.")
    narrow, wide = unet.UNet(*unet.widths_of(state)), unet.UNet(*unet.SD15_WIDTHS)
    narrow.load_state_dict(state)
    wide.load_state_dict(unet.pad_state(state))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    context = torch.randn(2, 77, 768, generator=generator)
    timesteps = torch.tensor([20.0, 900.0])
    expected = narrow(x, timesteps, context)
    torch.testing.assert_close(wide(x, timesteps, context), expected, atol=2e-3, rtol=0)
    assert expected.std() > 0.5


@torch.no_grad()
def test_the_host_computes_what_the_demo_prior_does(host, written):
    from comfy import sd

    demo = DemoPrior()
    with torch.inference_mode():
        model, clip, vae, _ = sd.load_checkpoint_guess_config(str(written), output_vae=True, output_clip=True)
        model.model.diffusion_model.float()
        sampling = model.model.model_sampling
        generator = torch.Generator().manual_seed(0)
        z0 = torch.randn(1, 4, 16, 16, generator=generator)
        prompts = ("a red cube, front view", "")
        for t in (0.05, 0.5, 0.9):
            sigma = demo.sigma(t)
            assert sigma == pytest.approx(
                float(sampling.sigma(torch.tensor(t * (len(sampling.sigmas) - 1)))), rel=1e-5
            )
            z = z0 + sigma * torch.randn(z0.shape, generator=generator)
            ours = demo.denoise(z, sigma, [demo.caption(prompt) for prompt in prompts])
            for prompt, expected in zip(prompts, ours, strict=True):
                (context, _), *_ = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
                found = model.model.apply_model(z, torch.tensor([sigma]), c_crossattn=context.float().cpu())
                torch.testing.assert_close(found, expected, atol=5e-3 * (1 + sigma), rtol=0)

        picture = torch.rand(1, 32, 32, 3, generator=generator)
        found = model.model.process_latent_in(vae.encode(picture))
        torch.testing.assert_close(found, demo.encode(picture), atol=2e-2, rtol=0)
        torch.testing.assert_close(
            vae.decode(vae.encode(picture)), demo.decode(demo.encode(picture)), atol=2e-2, rtol=0
        )


@torch.no_grad()
def test_the_host_computes_what_the_camera_prior_does(host, tmp_path):
    """By the host's own node, whose pictures have the elevation 0."""
    from comfy import sd
    from comfy_extras.nodes_stable3d import StableZero123_Conditioning

    demo = DemoCameraPrior()
    path = str(checkpoint.write(tmp_path / "camera.safetensors", checkpoint.CAMERA_PRIOR))
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(1, 64, 64, 3, generator=generator)
    z = 2.0 * torch.randn(1, 4, 8, 8, generator=generator)
    with torch.inference_mode():
        model, clip, vae, vision = sd.load_checkpoint_guess_config(
            path, output_vae=True, output_clip=False, output_clipvision=True
        )
        assert clip is None and type(model.model).__name__ == "Stable_Zero123"
        model.model.diffusion_model.float()
        answer = StableZero123_Conditioning.execute(vision, rgb, vae, 64, 64, 1, 20.0, -50.0)
        found = []
        for ((cond, extra),) in answer.args[:2]:
            conds = model.model.extra_conds(noise=z, cross_attn=cond.float(), **extra)
            told = {name: conds[name].cond for name in ("c_concat", "c_crossattn")}
            found.append(model.model.apply_model(z, torch.tensor([2.0]), **told))
    prompts = demo.prompts(Picture(rgb[0], torch.ones(64, 64, 1), PictureView()))
    angles = (torch.tensor([value]).deg2rad() for value in (-50.0, 20.0))
    conds = prompts.at(demo, *angles)
    expected = demo.denoise(z, 2.0, [conds.y, conds.negative])
    for host_answer, ours in zip(found, expected, strict=True):
        torch.testing.assert_close(host_answer, ours, atol=2e-2, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("prefix, make, channels", [("enc.", taesd.encoder, 3), ("dec.", taesd.decoder, 4)])
def test_the_padded_autoencoder_computes_what_the_narrow_one_does(prior, prefix, make, channels):
    state = part(prior, prefix)
    narrow, wide = make(), make(taesd.TAESD_WIDTHS)
    narrow.load_state_dict(state)
    wide.load_state_dict(taesd.pad_state(state, wide))
    x = torch.rand(1, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide(x), narrow(x), atol=1e-4, rtol=1e-4)


def test_names_and_shapes_are_sd15s(written):
    with safe_open(written, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    text = "cond_stage_model.transformer.text_model."
    assert len(shapes) == 539
    assert shapes["model.diffusion_model.input_blocks.0.0.weight"] == (320, 4, 3, 3)
    assert shapes["model.diffusion_model.output_blocks.1.0.skip_connection.weight"] == (320, 640, 1, 1)
    assert shapes["first_stage_model.taesd_encoder.0.weight"] == (64, 3, 3, 3)
    assert shapes["first_stage_model.vae_scale"] == ()
    assert shapes[text + "embeddings.token_embedding.weight"] == (49408, 768)
    assert shapes[text + "encoder.layers.11.mlp.fc1.weight"] == (3072, 768)
    assert 300e6 < written.stat().st_size < 350e6


def test_the_text_encoder_hands_on_words(prior):
    words = prior["words"].float()
    state = checkpoint.text_encoder(words)
    tokens = state["text_model.embeddings.token_embedding.weight"]
    assert torch.equal(tokens[11353], words[KINDS.index("cube")])
    assert torch.equal(tokens[49406], words[CONCEPTS.index(START)])
    assert tokens[49407].count_nonzero() == 0  # the end token is filler: nothing but position
    assert torch.equal(
        state["text_model.embeddings.position_embedding.weight"][76], words[CONCEPTS.index(FILLER)]
    )


def test_a_complete_file_is_not_written_twice(written):
    before = written.stat()
    checkpoint.write(written)
    assert (written.stat().st_ino, written.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(written.parent.iterdir()) == [written]
    assert stat.S_IMODE(before.st_mode) & 0o444 == 0o444


@pytest.mark.parametrize("old", ["truncated", "another prior", "no checkpoint", "stampless"])
def test_anything_else_under_the_name_is_replaced(written, tmp_path, monkeypatch, old):
    path = tmp_path / "demo.safetensors"
    if old == "truncated":
        path.write_bytes(written.read_bytes()[:-1])
    elif old == "no checkpoint":
        path.write_text("not safetensors")
    else:
        metadata = {checkpoint.STAMP: "0"} if old == "another prior" else None
        save_file({"x": torch.zeros(1)}, path, metadata=metadata)
    monkeypatch.setattr(checkpoint, "expand", lambda narrow: {"new": torch.ones(1)})
    checkpoint.write(path)
    assert load_file(path).keys() == {"new"}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "demo.safetensors"
    path.write_text("old")

    def fail_half_way(tensors, path, metadata):
        Path(path).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "expand", lambda narrow: narrow)
    monkeypatch.setattr(checkpoint, "save_file", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_prior_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"not at .*nowhere"):
        checkpoint.write(tmp_path / "out.safetensors", prior=tmp_path / "nowhere.safetensors")
