"""The same checkpoint loaded by the host and by diffusers: two implementations of everything between text and
noise.
"""

import pytest
import torch
from rounding import ROUNDINGS, difference, rounding_of

from .graphs import node_of, workflow

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SIGMAS = (0.05, 0.7, 3.0, 14.0)
DEMO_UNET = {
    "sample_size": 16,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 320),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def test_host_and_diffusers_predict_the_same_noise(client, base, host_path):
    """Tokeniser, text encoder, UNet and noise levels of DiffusersPrior against the host's, for the demo
    prior.
    """
    from lucid_core.diffusion.diffusers_prior import (
        SD15_BETAS,
        DiffusersPrior,
        encode_text,
        text_encoder_of,
        unet_of,
    )
    from lucid_core.errors import BadFile
    from lucid_core.guidance.base import eps

    graph = workflow()
    loader, prompt = node_of(graph, "CheckpointLoaderSimple"), node_of(graph, "LucidPrompt")
    inputs = {
        "model": [loader, 0],
        "vae": [loader, 2],
        "prompt": [prompt, 0],
        "sigmas": " ".join(map(str, SIGMAS)),
    }
    probe = {
        "probe": {"class_type": "LucidTestEps", "inputs": inputs},
        loader: graph[loader],
        prompt: graph[prompt],
    }
    found = client.run(probe)["outputs"]["probe"]

    checkpoint = base / "models" / "checkpoints" / graph[loader]["inputs"]["ckpt_name"]
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(host_path / "comfy" / "sd1_tokenizer"))
    text = f"{graph[prompt]['inputs']['text']}, {graph[prompt]['inputs']['front']}"
    encoder = text_encoder_of(checkpoint)
    cond = encode_text(text, tokenizer, encoder)
    prior = DiffusersPrior(
        unet_of(checkpoint, DEMO_UNET), None, diffusers.DDIMScheduler(**SD15_BETAS).alphas_cumprod
    )
    assert [prior.sigma(t) for t in (0.0, 0.3, 0.6543, 1.0)] == pytest.approx(found["levels"], rel=1e-4)
    with pytest.raises(BadFile, match="36,653,124") as error:
        unet_of(checkpoint, {**DEMO_UNET, "up_block_types": ("CrossAttnUpBlock2D",) * 2})
    assert error.value.path == checkpoint
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for sigma in SIGMAS:
        (ours,) = eps(prior, sigma * noise, sigma, [cond])
        theirs = torch.tensor(found[f"{sigma:g}"]).reshape(ours.shape)
        rounding = rounding_of(
            lambda s=sigma: eps(prior, s * noise, s, [encode_text(text, tokenizer, encoder)])[0], ours
        )
        assert difference(ours, theirs) < ROUNDINGS * rounding
        assert (ours - noise).abs().max() > 1e-2  # it is not trivially the noise that was put in
