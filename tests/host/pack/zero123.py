"""Nodes for the tests of the image prompt: a small Stable Zero123, pictures, and the host's own conditioning
beside ours.
"""

from types import SimpleNamespace

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_api.latest import IO
from comfy_extras.nodes_stable3d import StableZero123_Conditioning
from rounding import difference, rounding_of

from .control import module_of
from .family_nodes import BUILT, one_step

SIDE = 64
CLIP_VISION = {  # as small as it goes
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "image_size": 28,
    "intermediate_size": 32,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 14,
}


def randomise(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(module.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        one_sided = weight.ndim == 1 and "norm" in name and name.endswith("weight")
        weight.data.copy_(1 + 0.1 * noise if one_sided else noise / max(weight[0].numel(), 100) ** 0.5)


class LucidTestZero123(IO.ComfyNode):
    """A Stable Zero123 of random weights, and its image encoder with embeddings of `width`."""

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestZero123",
            inputs=[IO.Int.Input("width", default=768)],
            outputs=[IO.Model.Output(), IO.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, width):
        generator = torch.Generator().manual_seed(5)
        projection = {
            "cc_projection.weight": torch.randn(768, 772, generator=generator) / 28,
            "cc_projection.bias": torch.randn(768, generator=generator) / 28,
        }
        config = comfy.supported_models.Stable_Zero123({**BUILT["sd15_narrow"][1], "in_channels": 8})
        config.set_inference_dtype(torch.float32, None)
        offload = comfy.model_management.unet_offload_device()
        model = config.get_model(projection, device=offload)
        randomise(model.diffusion_model, 1)
        encoder = comfy.clip_vision.ClipVisionModel({**CLIP_VISION, "projection_dim": width})
        randomise(encoder.model, 2)
        device = comfy.model_management.get_torch_device()
        return IO.NodeOutput(comfy.model_patcher.ModelPatcher(model, device, offload), encoder)


class LucidTestPicture(IO.ComfyNode):
    """A picture of a coloured square on white, and its mask (1 = object).

    "alpha": RGBA on black; "opaque": its alpha is 1 everywhere. "large": with a small object.
    """

    @classmethod
    def define_schema(cls):
        kinds = ["good", "alpha", "opaque", "several", "small", "no object", "of Load Image"]
        return IO.Schema(
            node_id="LucidTestPicture",
            inputs=[IO.Combo.Input("kind", options=kinds)],
            outputs=[IO.Image.Output(), IO.Mask.Output()],
        )

    @classmethod
    def execute(cls, kind):
        side = 48 if kind == "small" else SIDE
        image, mask = torch.ones(1, side, side, 3), torch.zeros(1, side, side)
        image[:, 16:40, 12:44] = torch.tensor([0.9, 0.3, 0.1])
        image[:, 16:28, 12:24] = torch.tensor([0.1, 0.2, 0.8])
        mask[:, 16:40, 12:44] = 1
        if kind == "no object":
            mask = torch.zeros(1, 64, 64)  # what Load Image gives without an alpha channel
        elif kind == "of Load Image":
            mask = 1 - mask
        elif kind in ("alpha", "opaque"):
            alpha = mask if kind == "alpha" else torch.ones_like(mask)
            image = torch.cat([image * mask[..., None], alpha[..., None]], -1)
        elif kind == "several":
            image, mask = image.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1)
        return IO.NodeOutput(image, mask)


class LucidTestCamera(IO.ComfyNode):
    """HostPrior's prediction for views of a picture prompt, beside the host's for its own conditioning.

    "far": the largest difference in each view; "mirrored": the same to the host's at the opposite azimuth.
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestCamera",
            inputs=[
                IO.Model.Input("model"),
                IO.ClipVision.Input("clip_vision"),
                IO.Vae.Input("vae"),
                IO.Image.Input("image"),
                IO.Custom("LUCID_PROMPT").Input("prompt"),
                IO.String.Input("azimuths"),
                IO.String.Input("elevations"),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip_vision, vae, image, prompt, azimuths, elevations):
        views = [tuple(map(float, pair)) for pair in zip(azimuths.split(), elevations.split())]
        z = 3 * torch.randn(len(views), 4, 8, 8, generator=torch.Generator().manual_seed(0))

        def hosts(azimuth, elevation):
            return StableZero123_Conditioning.execute(
                clip_vision, image, vae, SIDE, SIDE, 1, elevation, azimuth
            ).args[:2]

        asked = lambda k, sign: one_step(model, hosts(sign * views[k][0], views[k][1])[0], z[k : k + 1])[0]
        theirs, opposite = ([asked(k, sign) for k in range(len(views))] for sign in (1, -1))
        negative = one_step(model, hosts(0.0, 0.0)[1], z[:1])[0]
        rounding = rounding_of(lambda: asked(0, 1), theirs[0])

        def body(prior, prompts):
            azimuth, elevation = torch.tensor(views).deg2rad().unbind(-1)
            conds = prompts.at(prior, azimuth, elevation)
            ours, without = prior.denoise(z, 3.0, [conds.y, conds.negative])
            return {
                "far": [difference(*pair) for pair in zip(ours, theirs)],
                "mirrored": [difference(*pair) for pair in zip(ours, opposite)],
                "negative": [difference(without[0], negative)],
                "rounding": [rounding],
                "evaluations": [prior.evaluations],
            }

        guidance = SimpleNamespace(model=model, vae=vae, prompt=prompt)
        return IO.NodeOutput(ui=module_of("nodes.host").with_prior(guidance, len(views), SIDE, body))


NODES = [LucidTestZero123, LucidTestPicture, LucidTestCamera]
