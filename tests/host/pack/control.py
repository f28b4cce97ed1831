"""ControlNets in the running host: what our prior answers with them, and what the host's own nodes and
sampler do.
"""

import copy
import dataclasses
import gc
import sys
from types import SimpleNamespace

import comfy.controlnet
import comfy.latent_formats
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import comfy.t2i_adapter.adapter
import torch
from comfy_api.latest import IO
from rounding import difference, rounding_of

import nodes

from . import controlnets

SIGMA = 3.0
PROMPT = IO.Custom("LUCID_PROMPT")
NETS = [IO.ControlNet, IO.ModelPatch]


def module_of(name):
    """A module of the pack under test, as the host imported it."""
    return next(m for key, m in sys.modules.items() if key.endswith(f"lucid_ism.{name}"))


def hosts_z0(model, noise, cond):
    """z0 from one Euler step of the host's sampler to sigma 0; in a flow, sigma is t / (1 - t)."""
    flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    levels = torch.tensor([SIGMA / (1 + SIGMA) if flow else SIGMA, 0.0])
    video = model.model.latent_format.latent_dimensions == 3  # of one frame
    hosts = noise.unsqueeze(2) if video else noise
    stepped = comfy.samplers.sample(
        model,
        hosts,
        cond,
        cond,
        1.0,
        model.load_device,
        comfy.samplers.sampler_object("euler"),
        levels,
        latent_image=torch.zeros_like(hosts),
        disable_pbar=True,
        seed=0,
    )
    stepped = model.model.process_latent_in(stepped)
    return stepped.squeeze(2) if video else stepped


def settings():
    return [IO.Float.Input("strength"), IO.Float.Input("start"), IO.Float.Input("end")]


class LucidTestHints(IO.ComfyNode):
    """A ControlNet that encodes its hints (as those of Qwen-Image do): is each of a batch encoded by itself,
    and does it fit?

    "taken", "chained": the largest differences; "rounding": their unit; "refused": what is said where it does
    not fit `model`.
    """

    @classmethod
    def define_schema(cls):
        inputs = [IO.Model.Input("model"), IO.Vae.Input("vae")]
        return IO.Schema(node_id="LucidTestHints", inputs=inputs, outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, model, vae):
        control, latents = module_of("nodes.host.controlnet"), comfy.latent_formats.Wan21()
        net = comfy.controlnet.ControlNet(torch.nn.Linear(1, 1), compression_ratio=1, latent_format=latents)
        hints = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        found = {}
        for way, own in (
            ("taken", control._own(net.copy().set_cond_hint(None, vae=vae))),
            (
                "chained",
                control._chained(None, SimpleNamespace(net=net, strength=1.0, start=0.0, end=1.0), vae, {}),
            ),
        ):
            control.set_hint([own], hints)
            encoded = own.vae.encode(own.cond_hint_original.movedim(1, -1))
            each = lambda: torch.cat([vae.encode(hint[None]) for hint in hints])
            found[way], found["rounding"] = [difference(encoded, each())], [rounding_of(each)]
        try:
            control.require_fit(model, [net])
        except module_of("lucid_core.errors").BadInput as error:
            found["refused"] = [{"name": error.name, "problem": error.problem}]
        return IO.NodeOutput(ui=found)


class LucidTestControl(IO.ComfyNode):
    """Largest differences between the prior's answers under `controlled` and the host's under its own Apply
    ControlNet.

    `plain` is the prompt without controls; `net` and `second` are the controls in order, with the same
    settings. Each of two views has its own hint, the host is asked about one view at a time. "rounding": the
    unit of these differences.
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestControl",
            inputs=[
                IO.Model.Input("model"),
                IO.Vae.Input("vae"),
                PROMPT.Input("plain"),
                PROMPT.Input("controlled"),
                IO.MultiType.Input("net", NETS),
                IO.MultiType.Input("second", NETS, optional=True),
                *settings(),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, vae, plain, controlled, net, strength, start, end, second=None):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2, model.model.latent_format.latent_channels, 8, 8, generator=generator)
        nets = [each for each in (net, second) if each is not None]
        hints = [torch.rand(2, 64, 64, 3, generator=generator) for _ in nets]

        def hosts(b):
            """z0 of view b for the prompt and for the negative one."""
            y, n, patched = plain.views[0], plain.negative, model
            for each, hint in zip(nets, hints):
                if isinstance(
                    each, comfy.model_patcher.ModelPatcher
                ):  # most nodes of these have no range: 0.9 is out of it
                    patched = (
                        controlnets.patched(patched, each, vae, hint[b : b + 1], strength)
                        if start < 0.9
                        else patched
                    )
                else:
                    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
                    y, n = apply(y, n, each, hint[b : b + 1], strength, start, end, vae)
            return torch.stack([hosts_z0(patched, noise[b : b + 1], cond)[0] for cond in (y, n)])

        both = lambda: torch.stack([hosts(0), hosts(1)], 1)
        theirs_y, theirs_n = theirs = both()
        rounding = rounding_of(both, theirs)
        without, inverse = (hosts_z0(model, noise, cond) for cond in (plain.views[0], plain.inverse))

        def body(prior, prompts):
            prior.set_control_images(hints)
            front = torch.tensor([[1.0, 0, 0, 0]] * 2)
            ask = lambda prior, *conds: prior.denoise(SIGMA * noise, SIGMA, list(conds))
            y = prior.blend(list(prompts.views), front)
            ours_y, ours_n = ask(prior, y, prompts.negative)
            three = ask(prior, y, prompts.negative, prompts.views[0])
            split = module_of("lucid_core.diffusion.prior").SplitPrior(prior, 1)
            split.set_control_images(hints)
            parts = ask(split, split.blend(list(prompts.views), front), prompts.negative)
            prior.set_control_images([hint.flip(0) for hint in hints])
            (swapped,) = ask(prior, y)
            return {
                "y": [difference(ours_y, theirs_y)],
                "negative": [difference(ours_n, theirs_n)],
                "other batches": [*map(difference, three, (theirs_y, theirs_n, theirs_y))],
                "parts": [*map(difference, parts, (theirs_y, theirs_n))],
                "inverse": [difference(ask(prior, prompts.inverse)[0], inverse)],
                "rounding": [rounding],
                "effect": [difference(ours_y, without)],
                "swapped": [difference(swapped, ours_y)],
                "hints": [hint.kind for hint in prompts.hints],
            }

        guidance = SimpleNamespace(model=model, vae=vae, prompt=controlled)
        return IO.NodeOutput(ui=module_of("nodes.host").with_prior(guidance, 2, 64, body))


class LucidTestAtHome(IO.ComfyNode):
    """Where the hints of a MODEL_PATCH are after the node that encoded them has ended, for a model on a
    pretended GPU.
    """

    @classmethod
    def define_schema(cls):
        inputs = [IO.Model.Input("model"), IO.Vae.Input("vae"), IO.ModelPatch.Input("net")]
        return IO.Schema(node_id="LucidTestAtHome", inputs=inputs, outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, model, vae, net):
        Control = module_of("nodes.types").Control
        model = SimpleNamespace(
            load_device=torch.device("meta"),
            get_model_object=model.get_model_object,
            model_dtype=lambda: torch.float32,
        )
        shown = module_of("nodes.host.model_patches").PatchControl(Control(None, net), model, vae)
        shown.set_hint(torch.zeros(1, 64, 64, 3))
        gc.collect()
        found = [patch.encoded_image.device.type for some in shown.patches.values() for patch in some]
        return IO.NodeOutput(ui={"devices": found})


class LucidTestApplied(IO.ComfyNode):
    """A LUCID_PROMPT whose conditionings went through the host's Apply ControlNet, with one black image."""

    @classmethod
    def define_schema(cls):
        how = IO.Combo.Input("how", options=["advanced", "old"])
        vae = IO.Vae.Input("vae", optional=True)
        inputs = [PROMPT.Input("prompt"), IO.ControlNet.Input("net"), *settings(), how, vae]
        return IO.Schema(node_id="LucidTestApplied", inputs=inputs, outputs=[PROMPT.Output()])

    @classmethod
    def execute(cls, prompt, net, strength, start, end, how, vae=None):
        black = torch.zeros(1, 64, 64, 3)
        if how == "old":
            apply = nodes.ControlNetApply().apply_controlnet
            views, negative = [apply(view, net, black, strength)[0] for view in prompt.views], prompt.negative
        else:  # each by a node of its own: as many objects
            apply = nodes.ControlNetApplyAdvanced().apply_controlnet
            pairs = [
                apply(view, prompt.negative, net, black, strength, start, end, vae) for view in prompt.views
            ]
            views, negative = [view for view, _ in pairs], pairs[-1][1]
        return IO.NodeOutput(dataclasses.replace(prompt, views=tuple(views), negative=negative))


class LucidTestInpaints(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        net = IO.ControlNet
        return IO.Schema(node_id="LucidTestInpaints", inputs=[net.Input("net")], outputs=[net.Output()])

    @classmethod
    def execute(cls, net):
        net = net.copy()
        net.concat_mask = True
        return IO.NodeOutput(net)


class LucidTestAdapter(IO.ComfyNode):
    """No small UNet has the four levels of a T2I-Adapter, so it is asked itself: largest differences between
    what our copy gives for batches of several sizes and hints, and what a new one of the host gives for each
    row."""

    @classmethod
    def define_schema(cls):
        return IO.Schema(node_id="LucidTestAdapter", inputs=[], outputs=[], is_output_node=True)

    @classmethod
    def execute(cls):
        control, Control = module_of("nodes.host.controlnet"), module_of("nodes.types").Control
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = comfy.t2i_adapter.adapter.Adapter_light(channels=[8, 16, 16, 16], nums_rb=1, cin=192)
        new = lambda: comfy.controlnet.T2IAdapter(network, 3, 8, "nearest-exact")
        cond = [["", {}]]
        conds = {name: cond for name in ("front", "side", "back", "overhead", "negative", "inverse")}
        fits = control.require_fit
        control.require_fit = lambda model, controls: None
        try:
            conds, (shown,) = control.apply_controls(conds, (Control(None, new(), 0.7),), None, None)
        finally:
            control.require_fit = fits
        ours, found = conds["front"][0][1]["control"], []
        for rows, copies in ((2, 1), (2, 2), (2, 1), (3, 2), (1, 3)):
            hint = torch.rand(rows, 64, 64, 3, generator=generator)
            control.set_hint(shown, hint)
            x = torch.zeros(rows * copies, 4, 8, 8)
            together = ours.get_control(x, torch.ones(len(x)), {}, copies, {})["input"]
            for row in range(len(x)):
                alone = new().set_cond_hint(copy.copy(hint[row % rows][None].movedim(-1, 1)), 0.7)
                single = alone.get_control(x[:1], torch.ones(1), {}, 1, {})["input"]
                pairs = [(a, b) for a, b in zip(together, single) if a is not None]
                found += [difference(a.expand(len(x), -1, -1, -1)[row], b[0]) for a, b in pairs]
        ask = lambda: torch.cat([x.flatten() for x in network(hint.movedim(-1, 1))["input"] if x is not None])
        return IO.NodeOutput(
            ui={"differences": found, "rounding": [rounding_of(ask)], "size": [float(single[0].abs().max())]}
        )


NODES = [
    LucidTestHints,
    LucidTestControl,
    LucidTestAtHome,
    LucidTestApplied,
    LucidTestInpaints,
    LucidTestAdapter,
    *controlnets.NODES,
]
