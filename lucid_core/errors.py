"""The errors of the method: one class for each kind that a caller tells apart.

Each class holds fields, makes its message from them, and inherits from the builtin error of its kind.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)  # not frozen: Python and contextlib set attributes of a raised error
class LucidError(Exception):
    """Base of all errors here. `node`: display name of the node that raised it, put before the message."""

    node = ""

    def __post_init__(self) -> None:
        self.args = tuple(vars(self).values())  # with these, errors can be pickled and copied

    def __str__(self) -> str:
        return f"{self.node}: {self.sentence()}" if self.node else self.sentence()

    def sentence(self) -> str:
        """What is wrong with which value, and what to do."""
        raise NotImplementedError


@dataclass(eq=False)
class BadSetting(LucidError, ValueError):
    """The setting `name` has a `value` that is not among the `allowed` ones."""

    name: str
    value: Any
    allowed: str

    def sentence(self) -> str:
        return f"{self.name} is {self.value}; it must be {self.allowed}"


@dataclass(eq=False)
class BadInput(LucidError, ValueError):
    """The input `name` (a tensor, a model, ...) cannot be used; `problem` says why, and what to do."""

    name: str
    problem: str

    def sentence(self) -> str:
        return f"{self.name} {self.problem}"


@dataclass(eq=False)
class BadSplats(BadInput):
    """A splat cannot be used because of its field `name`, such as "means"."""

    def sentence(self) -> str:
        return f"the splat's {self.name} {self.problem}"


@dataclass(eq=False)
class BadFile(LucidError, ValueError):
    """The file or folder `path` does not hold what it should."""

    path: str | os.PathLike[str]
    reason: str

    def sentence(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class OtherRun(LucidError, ValueError):
    """A checkpoint belongs to another run. differences: name of a setting -> (value then, value now)."""

    differences: dict[str, tuple[Any, Any]]

    def sentence(self) -> str:
        # "second.ISM.cfg" -> "second.cfg"
        widgets = [re.sub(r"(^|\.)[A-Z]\w*\.(?=\w+$)", r"\1", name) for name in self.differences]
        shown = {
            name: widget if widgets.count(widget) == 1 else name
            for name, widget in zip(self.differences, widgets)
        }
        listed = "; ".join(
            f"{shown[name]} was {then}, is {now}" for name, (then, now) in self.differences.items()
        )
        return (
            f"the checkpoint is of another run: {listed}. Set them as they were, or take only its result "
            f"(resume_splat_only, resume_field_only)"
        )


@dataclass(eq=False)
class BackendUnavailable(LucidError, ValueError):
    """The rasterizer `backend` cannot be used on this machine."""

    backend: str
    reason: str

    def sentence(self) -> str:
        return f"backend {self.backend} {self.reason}; choose auto or numba"


@dataclass(eq=False)
class MissingPackage(LucidError, ImportError):
    """The optional `package` is not installed."""

    package: str

    def sentence(self) -> str:
        return (
            f"the package {self.package} is missing; install it into ComfyUI's Python with: "
            f"python -m pip install {self.package}"
        )


@dataclass(eq=False)
class NotFinite(LucidError, FloatingPointError):
    """`what` holds NaN or infinity at `step` of `steps`."""

    what: str
    step: int
    steps: int

    def sentence(self) -> str:
        return (
            f"{self.what} is not finite at step {self.step} of {self.steps}; lower the learning "
            f"rates or cfg, or clip gradients (clip_norm in Lucid Optimizer)"
        )


@dataclass(eq=False)
class NoGaussiansLeft(LucidError, RuntimeError):
    """Every Gaussian was pruned at `step` of `steps`."""

    step: int
    steps: int

    def sentence(self) -> str:
        when = f"at step {self.step} of {self.steps}"
        return f"every Gaussian was pruned {when}; start from more opaque or smaller ones"


@dataclass(eq=False)
class UnfinishedStep(LucidError, RuntimeError):
    """There is no valid state for a checkpoint: the parameters are partially updated by `step`."""

    step: int

    def sentence(self) -> str:
        return f"step {self.step} was not finished; use the checkpoint of the step before"


@dataclass(eq=False)
class OutOfMemory(LucidError, RuntimeError):
    """There is no memory for `what`, such as "one view of 512 px"; `remedy`: what helps."""

    what: str
    remedy: str = "lower the resolution, take a smaller model, or free memory (other programs, loaded models)"

    def sentence(self) -> str:
        return f"there is no memory for {self.what}; {self.remedy}"


@dataclass(eq=False)
class RenderError(LucidError, RuntimeError):
    """The rasterizer `backend` failed; `reason` is the first line of its own message."""

    backend: str
    reason: str

    REMEDY = (
        "this may be a bug in the backend or an incompatible package: choose another backend and report this "
        "message"
    )

    def sentence(self) -> str:
        return f"rasterizer {self.backend} failed: {self.reason}; {self.REMEDY}"


class RenderOutOfMemory(RenderError):
    """The rasterizer has no memory for a single view."""

    REMEDY = (
        "there is no memory to render one view; render fewer pixels or Gaussians, or choose another backend"
    )


class UnsupportedGpu(RenderError):
    """The rasterizer has no kernels for this GPU or driver."""

    REMEDY = "it cannot run on this GPU; choose another backend"


class LostGpu(RenderError):
    """No GPU call of this process works any more."""

    REMEDY = (
        "this GPU is unusable until the program is restarted; the cause may be any earlier GPU operation. "
        "If it happens again, choose another backend"
    )
