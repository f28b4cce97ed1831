"""A run whose model is on another device than its splat, and one whose splat is there too, on a machine that
has none.

The pretended GPU is torch's device "meta" with values: its tensors wrap those of the CPU, and what CUDA would
refuse, fails.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from lucid_core import rasterize
from lucid_core.conditioning.control_images import KINDS, Hint
from lucid_core.conditioning.view_prompts import Prompts, ViewBlend
from lucid_core.field.grid import FieldStart
from lucid_core.guidance.baselines import METHODS
from lucid_core.guidance.image_targets import ImageTargets
from lucid_core.guidance.ism import ISM
from lucid_core.guidance.mixing import GuidanceSource
from lucid_core.optimize.densify import Densify
from lucid_core.optimize.radiance import FieldConfig, distil_field
from lucid_core.rasterize import reference
from lucid_core.score.classifier import JudgeSettings, judge
from lucid_core.settings import replace_settings
from lucid_core.starts.shapes import PointCloud

from .scenes import CAMERAS, CONFIG, WishPrior, disc, dream, normal

GPU = torch.device("meta")
COPIES = ("_to_copy", "copy_")  # what may have tensors of both devices
METHOD = METHODS["SDS"]()
DENSIFY = Densify(prune_scale3d=0.0, start=0.0, every=0.5, stop=1.0, grow_grad2d=0.0, prune_opacity=0.05)


class OnGpu(torch.Tensor):
    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
        )

    def __init__(self, held):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})

    def new_tensor(self, data):  # these two would look into the wrapper
        return torch.tensor(data, dtype=self.dtype).to(GPU)

    def tolist(self):
        return self.held.tolist()


class PretendedGpu(TorchDispatchMode):
    """Within it tensors may be made on GPU."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})


def compute(op, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, OnGpu) for x in tensors)
    name = op._schema.name.removeprefix("aten::")
    if there and name not in COPIES:
        here = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim]
        may_index = name.startswith("index") and isinstance(args[0], OnGpu)
        assert not here or may_index, f"{op} has tensors of both devices"
    device = kwargs.get("device")
    to_gpu = there if device is None else torch.device(device) == GPU
    assert kwargs.get("generator") is None or not to_gpu, f"{op} draws on the GPU with a generator of the CPU"
    if device is not None:
        kwargs = {**kwargs, "device": "cpu", "pin_memory": None}
    out = op(*tree_map(held, args), **tree_map(held, kwargs))
    if name == "copy_":
        return args[0]
    if not to_gpu:
        return out
    wrapped = tree_map(lambda x: OnGpu(x) if isinstance(x, torch.Tensor) else x, out)
    return (
        wrapped if name == "_to_copy" or not there else return_and_correct_aliasing(op, args, kwargs, wrapped)
    )


class AppleGpu(PretendedGpu):
    """It has no float64."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(op, types, args, kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, OnGpu)]
        assert all(x.dtype != torch.float64 for x in made), f"{op} makes float64 on the GPU"
        return out


def held(x):
    return x.held if isinstance(x, OnGpu) else x


class PriorOnGpu(WishPrior):
    def encode(self, images):
        return super().encode(images.to(GPU))

    def denoise(self, z, sigma, conds):
        assert z.device == GPU and all(cond.device == GPU for cond in conds)
        return super().denoise(z, sigma, conds)

    def blend(self, conds, weights):
        return super().blend(conds, weights.to(GPU))

    def set_control_images(self, hints):
        self.shown = [hint.shape for hint in hints]


def steps_of(method=METHOD, steps=4, strategy="default", resume=None, fixed=None, hints=(), on_gpu=True):
    to = (lambda x: x.to(GPU)) if on_gpu else (lambda x: x)
    wish, anything = to(normal(disc([0.9, 0.2, 0.1]), 0.01)), to(normal(disc([0.5, 0.5, 0.5]), 1.0))
    prompts = Prompts((wish,) * 4, anything, anything, ViewBlend(perp_neg=2.0), hints)
    densify = replace(DENSIFY, strategy=strategy)
    config = replace_settings(
        CONFIG, steps=steps, disparity_share=0.5, flip_share=0.5, clip_norm=1.0, sh_degree=1, densify=densify
    )
    prior = PriorOnGpu() if on_gpu else WishPrior()
    made = []
    start = PointCloud(count=60, size=1.2).splats(0)
    for step in dream(start, prior, method, prompts, CAMERAS, config, 0, resume=resume, fixed=fixed):
        made.append((step, step.checkpoint()))
        step.x0_preview()
    return made


@pytest.fixture(params=["the splat on the CPU", "the splat on the GPU"])
def gpu(request, monkeypatch):
    """The device of the splat, within a pretended GPU."""
    if request.param == "the splat on the CPU":
        device = torch.device("cpu")
    else:
        device = GPU
        monkeypatch.setattr(rasterize, "device_for", lambda backend: GPU)
        monkeypatch.setattr(rasterize, "_render", lambda backend, arguments: reference.render(*arguments))
    with PretendedGpu():
        yield device


@pytest.mark.parametrize(
    "method",
    [ISM(eta=0.5, inversion_cfg=0.5, fix_noise=True), *(kind() for kind in METHODS.values())],
    ids=lambda method: type(method).__name__,
)
def test_every_method_keeps_to_the_devices(gpu, method):
    step, checkpoint = steps_of(method, steps=2)[-1]
    assert {x.device for x in vars(step.splats).values()} == {gpu}
    assert {type(x) for x in checkpoint.tensors.values()} == {torch.Tensor}  # on the CPU


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_a_run_goes_on_from_its_checkpoint_there(gpu, strategy):
    whole = steps_of(strategy=strategy)
    again = steps_of(strategy=strategy, resume=whole[1][1])
    assert len(whole[-1][0].splats) > 60
    assert torch.equal(held(again[-1][0].splats.means), held(whole[-1][0].splats.means))


def test_hints_and_fixed_splats_come_along(gpu):
    other = PointCloud(count=20, size=0.5).splats(1)
    hints = tuple(Hint(kind, guide) for kind in KINDS for guide in (None, other))
    assert len(steps_of(hints=hints, fixed=other)) == 4


def test_the_judge_keeps_to_the_devices():
    """Its verdict lies on the CPU, with the numbers of a prior that is there."""
    found, images = [], torch.rand(4, *disc([0.0, 0, 0]).shape[2:], 3)
    for prior, device in ((WishPrior(), torch.device("cpu")), (PriorOnGpu(), GPU)):
        with AppleGpu():
            texts = [normal(disc([0.2 * k, 0.2, 0.1]), 0.1).to(device) for k in range(5)]
            verdict = judge(
                prior, images, Prompts(tuple(texts[:4]), texts[4], texts[4]), JudgeSettings(4, 32)
            )
        found.append(verdict.log_errors)
    assert not isinstance(found[1], OnGpu) and torch.equal(*found)


def test_the_device_changes_no_number():
    here = steps_of(on_gpu=False)
    with PretendedGpu():
        there = steps_of()
    for (step, _), (true, _) in zip(there, here, strict=True):
        assert step.losses == pytest.approx(true.losses, rel=1e-4)


FIELD = FieldConfig(sparsity_weight=1.0, orient_weight=1.0)


@pytest.mark.parametrize("method", [METHOD, ImageTargets(views=2, fits=2, kept=2)], ids=["SDS", "targets"])
def test_a_field_is_optimised_there(gpu, method):
    wish, anything = (normal(disc(color), 0.01).to(GPU) for color in ([0.9, 0.2, 0.1], [0.5, 0.5, 0.5]))
    prompts = Prompts((wish,) * 4, anything, anything, ViewBlend())
    source, start = GuidanceSource(PriorOnGpu(), method, prompts), FieldStart(resolution=12).field()
    run = lambda resume=None: [
        (step, step.checkpoint())
        for step in distil_field(start, source, CAMERAS, config, FIELD, 0, "auto", resume)
    ]
    config = replace_settings(CONFIG, steps=3, clip_norm=1.0)
    whole = run()
    again = run(whole[1][1])
    assert whole[-1][0].result.grid.device == gpu
    assert torch.allclose(held(again[-1][0].result.grid), held(whole[-1][0].result.grid), atol=1e-4)
