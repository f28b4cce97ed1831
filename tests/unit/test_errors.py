"""The message of each kind of error, and what holds for all kinds."""

import copy
import pickle
from pathlib import Path

import pytest

from lucid_core import errors
from lucid_core.errors import (
    BackendUnavailable,
    BadFile,
    BadInput,
    BadSetting,
    BadSplats,
    LostGpu,
    LucidError,
    MissingPackage,
    NoGaussiansLeft,
    NotFinite,
    OtherRun,
    OutOfMemory,
    RenderError,
    RenderOutOfMemory,
    UnfinishedStep,
    UnsupportedGpu,
)

EXAMPLES = {
    BadSetting("steps", 0, "1 to 100"): "steps is 0; it must be 1 to 100",
    BadInput("vae", "is missing; load one"): "vae is missing; load one",
    BadSplats("means", "are not finite in 1 of 3 Gaussians; repair or remove these first"): (
        "the splat's means are not finite in 1 of 3 Gaussians; repair or remove these first"
    ),
    BadFile(Path("a.ply"), "it lacks the column x"): "a.ply: it lacks the column x",
    OtherRun({"seed": (1, 2), "second.ISM.cfg": (7.5, 5.0)}): (
        "the checkpoint is of another run: seed was 1, is 2; second.cfg was 7.5, is 5.0. Set them as they "
        "were, or take only its result (resume_splat_only, resume_field_only)"
    ),
    BackendUnavailable("gsplat", "needs a CUDA GPU"): (
        "backend gsplat needs a CUDA GPU; choose auto or numba"
    ),
    MissingPackage("plyfile"): (
        "the package plyfile is missing; install it into ComfyUI's Python with: python -m pip install plyfile"
    ),
    NotFinite("the loss", 4, 10): (
        "the loss is not finite at step 4 of 10; lower the learning rates or cfg, or clip gradients "
        "(clip_norm in Lucid Optimizer)"
    ),
    NoGaussiansLeft(4, 10): (
        "every Gaussian was pruned at step 4 of 10; start from more opaque or smaller ones"
    ),
    UnfinishedStep(4): "step 4 was not finished; use the checkpoint of the step before",
    OutOfMemory("one view of 64 px"): (
        "there is no memory for one view of 64 px; lower the resolution, take a smaller model, or free "
        "memory (other programs, loaded models)"
    ),
    RenderError("numba", "a bug"): (
        "rasterizer numba failed: a bug; this may be a bug in the backend or an incompatible package: choose "
        "another backend and report this message"
    ),
    RenderOutOfMemory("numba", "full"): (
        "rasterizer numba failed: full; there is no memory to render one view; render fewer pixels or "
        "Gaussians, or choose another backend"
    ),
    UnsupportedGpu("gswarp", "no kernel"): (
        "rasterizer gswarp failed: no kernel; it cannot run on this GPU; choose another backend"
    ),
    LostGpu("gswarp", "illegal address"): (
        "rasterizer gswarp failed: illegal address; this GPU is unusable until the program is restarted; the "
        "cause may be any earlier GPU operation. If it happens again, choose another backend"
    ),
}
each = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def test_every_kind_has_an_example():
    kinds = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LucidError)
    }
    assert {type(error) for error in EXAMPLES} == kinds - {LucidError}


@each
def test_the_message_names_what_is_wrong_and_what_to_do(error):
    assert str(error) == EXAMPLES[error]


@each
def test_keywords_make_the_same_error(error):
    assert type(error)(**vars(error)).args == error.args == tuple(vars(error).values())


@each
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_has_the_class_the_fields_and_the_node(error, again):
    error = copy.copy(error)
    error.node = "Lucid Dream"
    found = again(error)
    assert type(found) is type(error) and vars(found) == vars(error)
    assert str(found) == f"Lucid Dream: {error.sentence()}"
