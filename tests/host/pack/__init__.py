"""Nodes for the tests alone: inputs that no user can make by hand, and looks inside the running host."""

import copy
import errno
import itertools
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.samplers
import torch
from comfy_api.latest import IO, ComfyExtension, Types

sys.path.append(str(Path(__file__).resolve().parents[2] / "support"))  # rounding.py

from rounding import difference, rounding_of

from . import control, device, family_nodes, memory, pace, zero123
from .control import module_of


def full_disk(descriptor, fsync=os.fsync):
    """In the place of os.fsync, once."""
    os.fsync = fsync
    raise OSError(errno.ENOSPC, "No space left on device")


SPLAT_CHANGES = [
    "empty",
    "nan",
    "batch",
    "three",
    "far",
    "far and huge",
    "one",
    "two",
    "on one spot",
    "tiny",
    "faint",
    "zero rows",
]


class LucidTestSplat(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        changes = IO.Combo.Input("change", options=SPLAT_CHANGES)
        return IO.Schema(
            node_id="LucidTestSplat", inputs=[IO.Splat.Input("splat"), changes], outputs=[IO.Splat.Output()]
        )

    @classmethod
    def execute(cls, splat, change):
        fields = {
            name: getattr(splat, name).clone()
            for name in ("positions", "scales", "rotations", "opacities", "sh")
        }
        if change == "empty":
            fields = {name: value[:, :0] for name, value in fields.items()}
        elif change in (few := {"one": 1, "two": 2, "three": 3}):
            fields = {name: value[:, : few[change]] for name, value in fields.items()}
        elif change == "on one spot":
            fields["positions"][:] = fields["positions"][:, :1]
        elif change == "tiny":
            fields["positions"] *= 1e-3
            fields["scales"] *= 1e-3
        elif change == "faint":
            fields["opacities"][:] = 1e-4
        elif change == "zero rows":
            for value in fields.values():
                value[:, 1:] = 0
        elif change.startswith("far"):
            size = 1e4 if change.endswith("huge") else 1.0
            fields["positions"] = fields["positions"] * size + 1e6
            fields["scales"] = fields["scales"] * size
        elif change == "batch":
            fields = {name: torch.cat([value, value]) for name, value in fields.items()}
        else:
            fields["positions"][0, 7, 1] = float("nan")
        return IO.NodeOutput(Types.SPLAT(**fields))


class LucidTestMesh(IO.ComfyNode):
    """A cube in the host's axes (y up, front at +z): red in front, green at +x, white on top, blue elsewhere.

    "base colour": as ComfyUI 0.33 gives it, with half of the red and green.
    """

    @classmethod
    def define_schema(cls):
        options = ["vertex colours", "base colour", "texture", "plain", "batch", "empty"]
        return IO.Schema(
            node_id="LucidTestMesh",
            inputs=[IO.Combo.Input("kind", options=options)],
            outputs=[IO.Mesh.Output()],
        )

    @classmethod
    def execute(cls, kind):
        paint = {(2, 1): (1.0, 0, 0), (0, 1): (0, 1.0, 0), (1, 1): (1.0, 1, 1)}
        vertices, faces, colors = [], [], []
        for axis, sign in itertools.product(range(3), (-1, 1)):
            n = len(vertices)
            corner = torch.full((4, 3), float(sign))
            corner[:, (axis + 1) % 3], corner[:, (axis + 2) % 3] = torch.tensor(
                [[-1.0, 1, 1, -1], [-1, -1, 1, 1]]
            )
            vertices += list(corner)
            faces += [[n, n + 1, n + 2], [n, n + 2, n + 3]]
            colors += [paint.get((axis, sign), (0, 0, 1.0))] * 4
        vertices, faces, colors = (
            torch.stack(vertices)[None],
            torch.tensor(faces)[None],
            torch.tensor(colors)[None],
        )
        if kind in ("vertex colours", "base colour"):
            mesh = Types.MESH(vertices, faces, vertex_colors=torch.cat([colors, torch.ones(1, 24, 1)], -1))
            if kind == "base colour":
                mesh.material = {"base_color_factor": [0.214, 0.214, 1.0, 1.0]}
            return IO.NodeOutput(mesh)
        if kind == "texture":
            uvs = torch.stack([(torch.arange(24) // 4 + 0.5) / 6, torch.full((24,), 0.5)], -1)
            return IO.NodeOutput(
                Types.MESH(vertices, faces, uvs=uvs[None], texture=colors[:, None, ::4].repeat(1, 6, 1, 1))
            )
        if kind == "batch":
            return IO.NodeOutput(Types.MESH(vertices.repeat(2, 1, 1), faces.repeat(2, 1, 1)))
        return IO.NodeOutput(Types.MESH(vertices, faces[:, :0] if kind == "empty" else faces))


class LucidTestModel(IO.ComfyNode):
    """A real MODEL and VAE whose description, or whose forward, is spoilt."""

    @classmethod
    def define_schema(cls):
        options = ["video vae", "vae channels", "no vae", "patched weights"]
        options += [
            "full disk",
            "none",
            "fails at call 4",
            "NaN from call 12",
            "2 s from call 12",
            "memory for 4 rows",
            "memory for 4 rows until call 12",
            "no memory in the second update",
        ]
        return IO.Schema(
            node_id="LucidTestModel",
            inputs=[IO.Model.Input("model"), IO.Vae.Input("vae"), IO.Combo.Input("change", options=options)],
            outputs=[IO.Model.Output(), IO.Vae.Output()],
        )

    @classmethod
    def execute(cls, model, vae, change):
        model, vae = model.clone(), copy.copy(vae)
        if change == "no vae":
            vae = None
        elif change == "vae channels":
            vae.latent_channels = 16
        elif change == "video vae":
            vae.latent_dim = 3
        elif change == "patched weights":
            key = "diffusion_model.out.2.bias"
            model.add_patches({key: ("diff", (torch.full((4,), 0.1),))})
        elif change == "full disk":
            os.fsync = full_disk
        else:
            model.set_model_unet_function_wrapper(Fault(change))
        return IO.NodeOutput(model, vae)


def fail_in_update(after):
    """The next Adam that updates a parameter for the `after`th time, and then another one, has no memory."""
    adam, updated = torch.optim.Adam.step, {}

    def step(optimizer, *arguments):
        updated[id(optimizer)] = updated.get(id(optimizer), 0) + 1
        if sum(times == after for times in updated.values()) == 2:
            torch.optim.Adam.step = adam
            raise torch.OutOfMemoryError("on purpose")
        return adam(optimizer, *arguments)

    torch.optim.Adam.step = step


class Fault:
    """All kinds are the same to a checkpoint, which tells patches apart: a run that one broke off is resumed
    with "none".
    """

    def __init__(self, kind):
        self.kind, self.calls = kind, 0

        if kind == "no memory in the second update":
            fail_in_update(after=2)

    def __call__(self, apply, arguments):
        self.calls += 1
        if self.kind == "fails at call 4" and self.calls == 4:
            raise RuntimeError("on purpose")
        rows = 0 if self.kind.endswith("12") and self.calls >= 12 else 4
        if self.kind.startswith("memory") and len(arguments["input"]) > rows:
            raise torch.cuda.OutOfMemoryError("on purpose")
        if self.kind == "2 s from call 12" and self.calls >= 12:
            time.sleep(2)
        prediction = apply(arguments["input"], arguments["timestep"], **arguments["c"])
        return (
            prediction * float("nan") if self.kind == "NaN from call 12" and self.calls >= 12 else prediction
        )


class LucidTestNeverLoaded(IO.ComfyNode):
    """In the place of a checkpoint loader: fails when it is reached."""

    @classmethod
    def define_schema(cls):
        outputs = [IO.Model.Output(), IO.Clip.Output(), IO.Vae.Output()]
        return IO.Schema(node_id="LucidTestNeverLoaded", inputs=[], outputs=outputs)

    @classmethod
    def execute(cls):
        raise RuntimeError("it was loaded")


class LucidTestLoaded(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        nonce = IO.Int.Input("nonce", default=0, max=2**31)
        return IO.Schema(node_id="LucidTestLoaded", inputs=[nonce], outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, nonce):
        names = [type(loaded.model.model).__name__ for loaded in comfy.model_management.current_loaded_models]
        return IO.NodeOutput(ui={"loaded": sorted(names)})


class LucidTestPrior(IO.ComfyNode):
    """Largest differences between HostPrior's answers and the host's own ways to the same numbers, with their
    units.
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestPrior",
            inputs=[IO.Model.Input("model"), IO.Vae.Input("vae"), IO.Custom("LUCID_PROMPT").Input("prompt")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, vae, prompt):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2, 4, 16, 16, generator=generator)
        images = torch.rand(2, 128, 128, 3, generator=generator)
        x, sigmas = 3.0 * noise, torch.tensor([3.0, 0.0])

        def stepped():
            """One Euler step of the host's sampler, to sigma 0: z0."""
            z0 = comfy.samplers.sample(
                model,
                noise,
                prompt.views[0],
                prompt.views[0],
                1.0,
                model.load_device,
                comfy.samplers.sampler_object("euler"),
                sigmas,
                latent_image=torch.zeros_like(noise),
                disable_pbar=True,
                seed=0,
            )
            return model.model.process_latent_in(z0)

        encode = lambda: model.model.process_latent_in(vae.encode(images))
        z0, encoded = stepped(), encode()
        rounding, encode_rounding = rounding_of(stepped, z0), rounding_of(encode, encoded)

        def body(prior, prompts):
            (ours,) = prior.denoise(x, 3.0, [prompts.views[0]])
            each = [prior.denoise(x, 3.0, [cond])[0] for cond in (prompts.views[0], prompts.views[2])]
            rows = prior.blend(list(prompts.views), torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]]))
            (together,) = prior.denoise(x, 3.0, [rows])
            pixels = images.clone().requires_grad_()
            latents = prior.encode(pixels)
            latents.square().sum().backward()
            return {
                "denoise": [difference(ours, z0)],
                "rounding": [rounding],
                "encode": [difference(latents, encoded)],
                "encode rounding": [encode_rounding],
                "rows": [max(difference(together[0], each[0][0]), difference(together[1], each[1][1]))],
                "sigma": [prior.sigma(1.0), prior.sigma(0.0)],
                "gradient": [float(pixels.grad.abs().min(dim=0).values.max())],
            }

        guidance = SimpleNamespace(model=model, vae=vae, prompt=prompt)
        return IO.NodeOutput(ui=module_of("nodes.host").with_prior(guidance, 2, 128, body))


class LucidTestEps(IO.ComfyNode):
    """HostPrior's noise for z (2, 4, 8, 8) of a seed, at some sigmas, for the front prompt: as flat lists."""

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestEps",
            inputs=[
                IO.Model.Input("model"),
                IO.Vae.Input("vae"),
                IO.Custom("LUCID_PROMPT").Input("prompt"),
                IO.String.Input("sigmas"),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, vae, prompt, sigmas):
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

        def body(prior, prompts):
            found = {}
            for sigma in map(float, sigmas.split()):
                (z0,) = prior.denoise(sigma * noise, sigma, [prompts.views[0]])
                found[f"{sigma:g}"] = ((sigma * noise - z0) / sigma).flatten().tolist()
            return found | {"levels": [prior.sigma(t) for t in (0.0, 0.3, 0.6543, 1.0)]}

        guidance = SimpleNamespace(model=model, vae=vae, prompt=prompt)
        return IO.NodeOutput(ui=module_of("nodes.host").with_prior(guidance, 2, 64, body))


class LucidTestExtension(ComfyExtension):
    async def get_node_list(self):
        return [
            LucidTestNeverLoaded,
            LucidTestSplat,
            LucidTestMesh,
            LucidTestModel,
            LucidTestLoaded,
            LucidTestPrior,
            LucidTestEps,
            *control.NODES,
            *device.NODES,
            *family_nodes.NODES,
            *memory.NODES,
            *pace.NODES,
            *zero123.NODES,
        ]


async def comfy_entrypoint():
    return LucidTestExtension()
