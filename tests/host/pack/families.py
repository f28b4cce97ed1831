"""Nodes for the tests of the model families: what no small file can bring, and the host's samplers beside HostPrior."""

import itertools
import sys
from types import SimpleNamespace

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from comfy_api.latest import IO

Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 128, "cap_feat_dim": 768, "n_layers": 1,
    "qk_norm": True, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip


def pack_host():
    """nodes/host of the pack under test, as the host imported it."""
    return next(m for name, m in sys.modules.items() if name.endswith("lucid_ism.nodes.host"))


def difference(a, b):
    return float((a - b).abs().max())


class LucidTestWiden(IO.ComfyNode):
    """CONDITIONING as wide as another family's text: its channels repeated, with a fixed sign pattern."""

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestWiden",
            inputs=[IO.Conditioning.Input("conditioning"), IO.Int.Input("width"), IO.Int.Input("pooled")],
            outputs=[IO.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning, width, pooled):
        widened = [
            [widen(tokens, width), options | {"pooled_output": widen(options["pooled_output"], pooled)}]
            for tokens, options in conditioning
        ]
        return IO.NodeOutput(widened)


def widen(values, width):
    repeated = values.repeat(*[1] * (values.ndim - 1), width // values.shape[-1] + 1)[..., :width]
    return repeated * torch.linspace(-1, 1, width).cos()


class LucidTestZImage(IO.ComfyNode):
    """A small Z-Image of the host's own classes, whose detection knows none but the full width."""

    @classmethod
    def define_schema(cls):
        return IO.Schema(node_id="LucidTestZImage", inputs=[], outputs=[IO.Model.Output()])

    @classmethod
    def execute(cls):
        config = comfy.supported_models.ZImage(dict(Z_IMAGE))
        config.set_inference_dtype(torch.float32, None)
        device = comfy.model_management.get_torch_device()
        model = config.get_model({}, device=comfy.model_management.unet_offload_device())
        generator = torch.Generator().manual_seed(1)
        for name, weight in sorted(model.diffusion_model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            one_sided = weight.ndim == 1 and "norm" in name
            weight.data.copy_(1 + 0.1 * noise if one_sided else noise / max(weight[0].numel(), 100) ** 0.5)
        return IO.NodeOutput(comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device()))


class LucidTestEuler(IO.ComfyNode):
    """Ten Euler steps of the host's sampler and ten in variance-exploding form through HostPrior, from the same noise.

    "after": the largest difference between their latents. "moved": how far they went. "sigmas": of ours.
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestEuler",
            inputs=[
                IO.Model.Input("model"), IO.Vae.Input("vae"), IO.Custom("LUCID_PROMPT").Input("prompt"),
                IO.Float.Input("cfg", default=1.0),
            ],
            outputs=[],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, prompt, cfg):
        channels = model.model.latent_format.latent_channels
        noise = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
        scaled = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
        start = model.model.process_latent_out(scaled)
        times = torch.linspace(0.9, 0.05, 11).tolist()

        def body(prior, prompts):
            sigmas = [prior.sigma(t) for t in times]
            z = scaled + sigmas[0] * noise
            asked = [prompts.views[0], prompts.negative]
            for sigma, below in itertools.pairwise(sigmas):
                e = [(z - z0) / sigma for z0 in prior.denoise(z, sigma, asked)]
                z = z + (below - sigma) * prior.guide(z, sigma, asked, e, cfg)
            return {"z": z, "sigmas": sigmas, "ends": [prior.sigma(0.0), prior.sigma(1.0)]}

        guidance = SimpleNamespace(model=model, vae=vae, prompt=prompt)
        ours = pack_host().with_prior(guidance, 2, 64, body)
        sampling = model.get_model_object("model_sampling")
        flow = hasattr(sampling, "shift") and not hasattr(sampling, "log_sigmas")
        levels = [sigma / (1 + sigma) if flow else sigma for sigma in ours["sigmas"]]
        theirs = comfy.samplers.sample(
            model, noise, prompt.views[0], prompt.negative, cfg, model.load_device, comfy.samplers.sampler_object("euler"),
            torch.tensor(levels), latent_image=start, disable_pbar=True, seed=0,
        )  # fmt: skip
        # The host's sampler gives the noisy latent divided by 1 - level, which in a flow is our form too.
        theirs = model.model.process_latent_in(theirs)
        return IO.NodeOutput(
            ui={
                "after": [difference(ours["z"], theirs)],
                "moved": [difference(theirs, scaled + ours["sigmas"][0] * noise)],
                "sigmas": ours["sigmas"],
                "ends": ours["ends"],
            }
        )


NODES = [LucidTestWiden, LucidTestZImage, LucidTestEuler]
