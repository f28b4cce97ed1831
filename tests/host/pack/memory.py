"""Nodes for the tests of memory: how a VAE is copied, loaded and let go, and torch.compile without a
compiler.
"""

import gc
import sys

import comfy.model_management
import comfy.taesd.taesd
import torch
from comfy_api.latest import IO
from comfy_api.torch_helpers import set_torch_compile_wrapper
from rounding import difference, rounding_of


def vae_module():
    """nodes/host/vae.py of the pack under test, as the host imported it."""
    return next(m for name, m in sys.modules.items() if name.endswith("lucid_ism.nodes.host.vae"))


class LucidTestVae(IO.ComfyNode):
    """The gradient of an image through GradientVAE, loaded in several ways: its distance to the gradient when
    all is loaded.

    "rounding", "encode rounding", "decode rounding": the units of the distances (see rounding.py).
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestVae", inputs=[IO.Vae.Input("vae")], outputs=[], is_output_node=True
        )

    @classmethod
    def execute(cls, vae):
        # With seed 0 one ReLU of the tiny video VAE lies so near its kink that rounding decides on its
        # gradient.
        images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode(False), torch.enable_grad():
            made = vae_module().GradientVAE(vae)
            cpu, size = made.patcher.load_device, made.memory_required(64)
            comfy.model_management.load_models_gpu([made.patcher])
            whole, latents = cls.gradient(made, images)
            rounding = rounding_of(lambda: cls.gradient(made, images)[0], whole)
            whole_kept = cls.kept(made, images)
            made.fit(2, 64, 1.5 * size)
            parts, _ = cls.gradient(made, images)
            made.fit(2, 64, 2.5 * size)
            fitting = made.views_at_a_time
            made.patcher.detach()
            made.patcher.partially_load(
                cpu, 1.0
            )  # one byte may be loaded: the rest comes with each layer that is computed
            lowvram, loaded = made.patcher.model.model_lowvram, made.patcher.loaded_size()
            low, _ = cls.gradient(made, images)
            made.fit(2, 64, -0.5 * size)
            blocks, _ = cls.gradient(made, images)
            made.views_at_a_time = None
            kept = cls.kept(made, images) / whole_kept
            decoded = made.decode(latents)
            made.release()
        distance = lambda a: difference(a, whole)
        encoded, decoded_by_host = cls.encoded(vae, images), cls.decoded(vae, latents)
        return IO.NodeOutput(
            ui={
                "rounding": [rounding],
                "encode rounding": [rounding_of(lambda: cls.encoded(vae, images), encoded)],
                "decode rounding": [rounding_of(lambda: cls.decoded(vae, latents), decoded_by_host)],
                "parts": [distance(parts)],
                "fitting": [fitting],
                "blocks": [distance(blocks)],
                "kept": [kept],
                "low": [distance(low)],
                "lowvram": [lowvram],
                "loaded": [loaded],
                "gradient": [float(whole.abs().max())],
                "encode": [difference(latents, encoded)],
                "shape": list(latents.shape),
                "decode": [difference(decoded, decoded_by_host)],
                "decoded": list(decoded.shape),
            }
        )

    @staticmethod
    def encoded(vae, images):
        """Each image by itself: together they would be one video's frames to a video VAE."""
        latents = torch.cat([vae.encode(image[None]) for image in images])
        return latents.squeeze(2) if vae.latent_dim == 3 else latents

    @staticmethod
    def decoded(vae, latents):
        each = [
            vae.decode(z[None, :, None])[0] if vae.latent_dim == 3 else vae.decode(z[None]) for z in latents
        ]
        return torch.cat(each)[..., :3]

    @staticmethod
    def gradient(made, images):
        pixels = images.clone().requires_grad_()
        latents = made.encode(pixels)
        latents.sin().sum().backward()
        return pixels.grad, latents.detach()

    @staticmethod
    def kept(made, images):
        """Bytes that autograd holds between the way there and the way back, without the weights."""
        storages = {}

        def note(x):
            if not isinstance(x if x._base is None else x._base, torch.nn.Parameter):
                storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            made.encode(images.clone().requires_grad_())
        return sum(storages.values())


TENSORS = (torch.Tensor, torch.nn.Parameter)


class LucidTestAlive(IO.ComfyNode):
    """How many VAEs are in memory, loaded or not, and the bytes of all tensors."""

    @classmethod
    def define_schema(cls):
        nonce = IO.Int.Input("nonce", default=0, max=2**31)
        return IO.Schema(node_id="LucidTestAlive", inputs=[nonce], outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, nonce):
        gc.collect()
        things = gc.get_objects()
        storages = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in things if type(x) in TENSORS
        }
        vaes = sum(type(thing) is comfy.taesd.taesd.TAESD for thing in things)
        return IO.NodeOutput(ui={"vaes": [vaes], "bytes": [sum(storages.values())]})


class LucidTestCompile(IO.ComfyNode):
    """The host's TorchCompileModel with a backend that needs no C++ compiler; its own choices are inductor
    and cudagraphs.
    """

    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidTestCompile", inputs=[IO.Model.Input("model")], outputs=[IO.Model.Output()]
        )

    @classmethod
    def execute(cls, model):
        model = model.clone(disable_dynamic=True)
        set_torch_compile_wrapper(model=model, backend="eager")
        return IO.NodeOutput(model)


NODES = [LucidTestVae, LucidTestAlive, LucidTestCompile]
