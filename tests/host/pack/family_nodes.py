"""Nodes for the tests of the model families: what no small file can bring, and the host's samplers beside
HostPrior.
"""

import itertools
import json
from types import SimpleNamespace

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch
from comfy_api.latest import IO
from comfy_execution.graph_utils import GraphBuilder
from rounding import difference, rounding_of

from .control import module_of

COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 768,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
    "num_blocks": 1,
    "num_heads": 2,
    "extra_per_block_abs_pos_emb": False,
}
QWEN_IMAGE = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 16,
    "num_attention_heads": 1,
    "joint_attention_dim": 768,
}
# family: the host's configuration of it, and what its detection would find in a model as small as this
BUILT = {
    "sd15_narrow": (
        "SD15",
        {  # with the levels that FreeU knows
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 32,
            "num_res_blocks": [1, 1, 1],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [1, 1, 0],
            "transformer_depth_output": [1, 1, 1, 1, 0, 0],
            "transformer_depth_middle": 1,
            "use_spatial_transformer": True,
            "legacy": False,
            "use_temporal_attention": False,
            "use_temporal_resblock": False,
            "context_dim": 768,
            "use_linear_in_transformer": False,
        },
    ),
    "z_image": (
        "ZImage",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 256,
            "cap_feat_dim": 768,
            "n_layers": 3,
            "qk_norm": True,
            "n_heads": 8,
            "n_kv_heads": 8,
            "axes_dims": [8, 12, 12],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8 / 3,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
    ),
    "chroma": (
        "Chroma",
        {
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "context_in_dim": 768,
            "hidden_size": 128,
            "mlp_ratio": 4.0,
            "num_heads": 1,
            "depth": 8,
            "depth_single_blocks": 8,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "in_dim": 64,
            "out_dim": 128,
            "hidden_dim": 128,
            "n_layers": 2,
            "txt_ids_dims": [],
            "vec_in_dim": None,
        },
    ),
    "qwen_image": ("QwenImage", QWEN_IMAGE),
    "qwen_layered": ("QwenImage", {**QWEN_IMAGE, "use_additional_t_cond": True}),
    "anima": ("Anima", {**COSMOS, "image_model": "anima", "crossattn_emb_channels": 1024}),
    "cosmos": ("CosmosT2IPredict2", {**COSMOS, "image_model": "cosmos_predict2"}),
}


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


class LucidTestSpoilt(IO.ComfyNode):
    """CONDITIONING that lacks, or holds, what no stock node of a small graph would make."""

    @classmethod
    def define_schema(cls):
        changes = ["no pooled text", "77 tokens more", "GLIGEN boxes", "T5 ids"]
        return IO.Schema(
            node_id="LucidTestSpoilt",
            inputs=[IO.Conditioning.Input("conditioning"), IO.Combo.Input("change", options=changes)],
            outputs=[IO.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning, change):
        (text, options) = conditioning[0]
        if change == "no pooled text":
            options = {name: value for name, value in options.items() if name != "pooled_output"}
        elif change == "T5 ids":  # as Anima's own text encoder adds them
            options = options | {
                "t5xxl_ids": torch.arange(text.shape[1]),
                "t5xxl_weights": torch.ones(text.shape[1]),
            }
        elif change == "77 tokens more":
            text = torch.cat([text, 0.5 * text.flip(1)], 1)
        else:
            options = options | {"gligen": ("position", None, [])}
        return IO.NodeOutput([[text, options]])


class LucidTestBuilt(IO.ComfyNode):
    """A small model of the host's own classes, of a family whose detection knows none but the full width."""

    @classmethod
    def define_schema(cls):
        family = IO.Combo.Input("family", options=list(BUILT))
        return IO.Schema(node_id="LucidTestBuilt", inputs=[family], outputs=[IO.Model.Output()])

    @classmethod
    def execute(cls, family):
        name, found = BUILT[family]
        config = getattr(comfy.supported_models, name)(dict(found))
        config.set_inference_dtype(torch.float32, None)
        device = comfy.model_management.get_torch_device()
        model = config.get_model({}, device=comfy.model_management.unet_offload_device())
        if adapter := getattr(model.diffusion_model, "llm_adapter", None):  # Anima's: six full-width blocks
            adapter.blocks = adapter.blocks[:1]
        generator = torch.Generator().manual_seed(1)
        for name, weight in sorted(model.diffusion_model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            one_sided = weight.ndim == 1 and "norm" in name
            weight.data.copy_(1 + 0.1 * noise if one_sided else noise / max(weight[0].numel(), 100) ** 0.5)
        return IO.NodeOutput(
            comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())
        )


class LucidTestEuler(IO.ComfyNode):
    """Euler steps of the host's sampler and as many in variance-exploding form through HostPrior, from the
    same noise.

    "after": the largest difference between their latents. "moved": how far they went. "z": a few values of
    where ours ended. "vae": the largest differences between what HostPrior and the host's VAE make of two
    images, and of their latents. "rounding", "vae rounding": the units of these differences (see
    rounding.py).
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestEuler",
            inputs=[
                IO.Model.Input("model"),
                IO.Vae.Input("vae"),
                IO.Custom("LUCID_PROMPT").Input("prompt"),
                IO.Float.Input("cfg", default=1.0),
                IO.Int.Input("steps", default=10),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, vae, prompt, cfg, steps):
        latents = model.model.latent_format
        hosts = lambda z: z if latents.latent_dimensions == 2 else z.unsqueeze(2)
        ours_of = lambda z: z if latents.latent_dimensions == 2 else z.squeeze(2)
        noise = torch.randn(2, latents.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
        scaled = torch.randn(2, latents.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
        start = model.model.process_latent_out(hosts(scaled))
        times = torch.linspace(0.9, 0.05, steps + 1).tolist()
        images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(2))
        # Together they would be a video's frames.
        encode = lambda: ours_of(
            model.model.process_latent_in(torch.cat([vae.encode(image[None]) for image in images]))
        )
        theirs_encoded = encode()
        each = model.model.process_latent_out(hosts(theirs_encoded))
        decode = lambda: torch.cat([vae.decode(z[None]).reshape(1, 64, 64, -1)[..., :3] for z in each])
        theirs_decoded = decode()

        def body(prior, prompts):
            sigmas = [prior.sigma(t) for t in times]
            z = scaled + sigmas[0] * noise
            asked = [prompts.views[0], prompts.negative]
            for sigma, below in itertools.pairwise(sigmas):
                e = [(z - z0) / sigma for z0 in prior.denoise(z, sigma, asked)]
                z = z + (below - sigma) * prior.guide(z, sigma, asked, e, cfg)
            encoded = prior.encode(images)
            differences = [
                difference(encoded, theirs_encoded),
                difference(prior.decode(theirs_encoded), theirs_decoded),
            ]
            return {
                "z": z,
                "sigmas": sigmas,
                "ends": [prior.sigma(0.0), prior.sigma(1.0)],
                "vae": differences,
            }

        guidance = SimpleNamespace(model=model, vae=vae, prompt=prompt)
        ours = module_of("nodes.host").with_prior(guidance, 2, 64, body)
        sampling = model.get_model_object("model_sampling")
        flow = hasattr(sampling, "shift") and not hasattr(sampling, "log_sigmas")
        levels = [sigma / (1 + sigma) if flow else sigma for sigma in ours["sigmas"]]

        def sample():
            latent = comfy.samplers.sample(
                model,
                hosts(noise),
                prompt.views[0],
                prompt.negative,
                cfg,
                model.load_device,
                comfy.samplers.sampler_object("euler"),
                torch.tensor(levels),
                latent_image=start,
                disable_pbar=True,
                seed=0,
            )
            # The host's sampler gives the noisy latent divided by 1 - level, which in a flow is our form too.
            return ours_of(model.model.process_latent_in(latent))

        theirs = sample()
        return IO.NodeOutput(
            ui={
                "after": [difference(ours["z"], theirs)],
                "rounding": [rounding_of(sample, theirs)],
                "moved": [difference(theirs, scaled + ours["sigmas"][0] * noise)],
                "sigmas": ours["sigmas"],
                "ends": ours["ends"],
                "vae": ours["vae"],
                "vae rounding": [rounding_of(encode, theirs_encoded), rounding_of(decode, theirs_decoded)],
                "z": ours["z"].flatten()[::37].tolist(),
            }
        )


class LucidTestBlend(IO.ComfyNode):
    """What HostPrior says to blended views, beside what the host's sampler and the views alone say.

    "average": two views blended half and half, against one Euler step of the host with the CONDITIONING
    `average`; "alone": rows of one view each, against that view by itself; "mixed": the same half and half,
    against the mean of both answers. "rounding": the unit of all three.
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestBlend",
            inputs=[
                IO.Model.Input("model"),
                IO.Vae.Input("vae"),
                IO.Custom("LUCID_PROMPT").Input("prompt"),
                IO.Conditioning.Input("average", optional=True),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, vae, prompt, average=None):
        latents = model.model.latent_format
        side = 64 // latents.spacial_downscale_ratio
        z = 3 * torch.randn(
            2, latents.latent_channels, side, side, generator=torch.Generator().manual_seed(0)
        )
        half, alone = torch.tensor([[0.5, 0, 0.5, 0]] * 2), torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])

        def body(prior, prompts):
            views = list(prompts.views)
            ask = lambda cond: prior.denoise(z, 3.0, [cond])[0]
            front, back = ask(views[0]), ask(views[2])
            both, rows = (ask(prior.blend(views, weights)) for weights in (half, alone))
            found = {
                "alone": [max(difference(rows[0], front[0]), difference(rows[1], back[1]))],
                "mixed": [difference(both, (front + back) / 2)],
                "apart": [difference(front, back)],
                "entries": [len(prior.blend(views, half))],
                "rounding": [
                    max(rounding_of(lambda: ask(views[0]), front), rounding_of(lambda: ask(views[2]), back))
                ],
            }
            if average is not None:
                found["average"] = [difference(both, one_step(model, average, z))]
            return found

        return IO.NodeOutput(
            ui=module_of("nodes.host").with_prior(
                SimpleNamespace(model=model, vae=vae, prompt=prompt), 2, 64, body
            )
        )


def one_step(model, conditioning, z):
    """z0 at sigma 3: one Euler step of the host's sampler, to sigma 0."""
    stepped = comfy.samplers.sample(
        model,
        z / 3,
        conditioning,
        conditioning,
        1.0,
        model.load_device,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([3.0, 0.0]),
        latent_image=torch.zeros_like(z),
        disable_pbar=True,
        seed=0,
    )
    return model.model.process_latent_in(stepped)


SEEN = []  # of LucidTestAttention


class LucidTestAttention(IO.ComfyNode):
    """An attention patch as an IP-Adapter's: it adds to what is asked with the prompt, and not to what is
    asked without.
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestAttention", inputs=[IO.Model.Input("model")], outputs=[IO.Model.Output()]
        )

    @classmethod
    def execute(cls, model):
        model = model.clone()

        def add(out, options):
            roles = options["cond_or_uncond"]
            SEEN.append(list(roles))
            parts = zip(roles, out.chunk(len(roles)))
            return torch.cat([part + (part.abs().mean() if role == 0 else 0) for role, part in parts])

        model.set_model_attn2_output_patch(add)
        return IO.NodeOutput(model)


class LucidTestHolder(IO.ComfyNode):
    """A CFG patch that holds the model it is on, as many packs write theirs."""

    @classmethod
    def define_schema(cls):
        inputs = [IO.Model.Input("model"), IO.Float.Input("strength")]
        return IO.Schema(node_id="LucidTestHolder", inputs=inputs, outputs=[IO.Model.Output()])

    @classmethod
    def execute(cls, model, strength):
        model = model.clone()

        def combine(args):
            cond, uncond = args["cond"], args["uncond"]
            return uncond + args["cond_scale"] * strength * (cond - uncond) * (
                model.load_device == cond.device
            )

        model.set_model_sampler_cfg_function(combine)
        return IO.NodeOutput(model)


class LucidTestRemembers(IO.ComfyNode):
    """A CFG patch that keeps what it has seen in a dict and a list, as caching packs do."""

    @classmethod
    def define_schema(cls):
        inputs = [IO.Model.Input("model"), IO.Float.Input("strength")]
        return IO.Schema(node_id="LucidTestRemembers", inputs=inputs, outputs=[IO.Model.Output()])

    @classmethod
    def execute(cls, model, strength):
        model, seen, calls = model.clone(), {}, []

        def combine(args):
            cond, uncond = args["cond"], args["uncond"]
            seen[float(args["sigma"].flatten()[0])] = cond.mean()
            calls.append(len(cond))
            return uncond + args["cond_scale"] * strength * (cond - uncond)

        model.set_model_sampler_cfg_function(combine)
        return IO.NodeOutput(model)


class LucidTestRoles(IO.ComfyNode):
    """What LucidTestAttention saw of the questions of a guidance: [y, negative, another view], the inverse
    alone.
    """

    @classmethod
    def define_schema(cls):
        inputs = [IO.Model.Input("model"), IO.Vae.Input("vae"), IO.Custom("LUCID_PROMPT").Input("prompt")]
        return IO.Schema(node_id="LucidTestRoles", inputs=inputs, outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, model, vae, prompt):
        z = torch.randn(
            2, model.model.latent_format.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0)
        )

        def body(prior, prompts):
            y = prior.blend(list(prompts.views), torch.full((2, 4), 0.25))
            SEEN.clear()
            prior.denoise(z, 1.0, [y, prompts.negative, prompts.views[2]])
            together = sorted(SEEN[0])
            SEEN.clear()
            prior.denoise(z, 1.0, [prompts.inverse])
            return {"together": together, "inverse": SEEN[0]}

        return IO.NodeOutput(
            ui=module_of("nodes.host").with_prior(
                SimpleNamespace(model=model, vae=vae, prompt=prompt), 2, 64, body
            )
        )


class LucidTestExpanded(IO.ComfyNode):
    """Becomes a LoRA and Lucid ISM, whose settings `ism` holds as JSON, when it runs: as the bodies of the
    host's loops.
    """

    @classmethod
    def define_schema(cls):
        inputs = [
            IO.Model.Input("model"),
            IO.Vae.Input("vae"),
            IO.Custom("LUCID_PROMPT").Input("prompt"),
            IO.String.Input("lora"),
            IO.String.Input("ism"),
        ]
        outputs = [IO.Custom("LUCID_GUIDANCE").Output()]
        return IO.Schema(node_id="LucidTestExpanded", inputs=inputs, outputs=outputs, enable_expand=True)

    @classmethod
    def execute(cls, model, vae, prompt, lora, ism):
        graph = GraphBuilder()
        loaded = graph.node("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=0.8)
        guidance = graph.node("LucidISM", model=loaded.out(0), vae=vae, prompt=prompt, **json.loads(ism))
        return IO.NodeOutput(guidance.out(0), expand=graph.finalize())


NODES = [
    LucidTestExpanded,
    LucidTestWiden,
    LucidTestSpoilt,
    LucidTestBuilt,
    LucidTestEuler,
    LucidTestBlend,
    LucidTestAttention,
    LucidTestHolder,
    LucidTestRemembers,
    LucidTestRoles,
]
