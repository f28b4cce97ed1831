import logging
from collections.abc import Iterable
from typing import Any

import torch
from comfy_api.latest import IO

from ..lucid_core.conditioning.picture import on_white
from ..lucid_core.errors import BadInput
from ..lucid_core.guidance.image_targets import ImageTargets
from ..lucid_core.guidance.mixing import GuidanceSource
from ..lucid_core.io import video
from ..lucid_core.optimize.edit import Edit, Edited, edit_picture, require_mask, side_of
from . import host
from .inputs import CATEGORY, UNFINISHED, errors_of, fold_seed, inputs_of, replace_from_widgets, seed_input
from .types import LucidGuidanceData, LucidGuidanceType, LucidPictureData

log = logging.getLogger(__name__)
TITLE = "Lucid Edit Image"
PREVIEWS = 8  # decoded pictures that the node shows during a run


class LucidEditImage(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidEditImage",
            display_name=TITLE,
            category=CATEGORY,
            search_aliases=["image editing", "diffedit", "delta denoising", "ism 2d", "instruct pix2pix"],
            description="Edits a picture by a text with Lucid ISM or a baseline. Only what the text changes "
            "is touched; the rest of the picture stays bit-identical.",
            inputs=[
                IO.Image.Input(
                    "image",
                    tooltip="Picture to edit, at the model's size, e.g. 512 px. A batch is edited picture "
                    "by picture.",
                ),
                # lazy, so that `check_lazy_status` can check the settings before a model is loaded
                LucidGuidanceType.Input(
                    "guidance",
                    lazy=True,
                    tooltip="Model, prompt and method from Lucid ISM or Lucid Baseline. The prompt says what "
                    "the picture shows after the edit; its `inverse` what it shows now (optional).",
                ),
                IO.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture may change (1 = yes). Not connected = found by the model.",
                ),
                *inputs_of(Edit),
                seed_input("picture"),
            ],
            outputs=[
                IO.Image.Output(display_name="image", tooltip="The edited picture."),
                IO.Mask.Output(display_name="mask", tooltip="Where the picture was allowed to change."),
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, image=None, guidance=None, mask=None, **settings):
        with errors_of(cls):
            replace_from_widgets(Edit(), settings)
            return [] if guidance else ["guidance"]

    @classmethod
    def execute(cls, image, guidance, seed, mask=None, **settings) -> IO.NodeOutput:
        with errors_of(cls), torch.inference_mode(False):
            config = replace_from_widgets(Edit(), settings)
            require_gradient(guidance)
            pictures = on_white(image)
            masks = masks_of(mask, pictures)
            progress = host.Progress(config.steps * len(pictures))

            images, changed = [], []

            def run(source: GuidanceSource) -> None:
                for number, (picture, one) in enumerate(zip(pictures, masks)):
                    steps = edit_picture(source, picture, config, fold_seed(seed) ^ number, one)
                    last = follow(steps, progress, number * config.steps, config.steps)
                    images.append(last.picture())
                    changed.append(last.mask)
                log.info("%s: %d model evaluations", TITLE, source.evaluations)

            try:
                host.with_source(guidance, 1, side_of(pictures[0]), run)
            except BaseException:
                rescue(images, host.node_of_page(cls.hidden))
                raise
            return IO.NodeOutput(torch.stack(images), torch.stack(changed))


def require_gradient(guidance: Any) -> None:
    """Raise BadInput unless `guidance` is one method that gives a gradient, with a text."""
    if not isinstance(guidance, LucidGuidanceData):
        raise BadInput("guidance", "is a mix; set surface_share in Lucid ISM to 0, and leave out Lucid Mix")
    if isinstance(guidance.method, ImageTargets):
        raise BadInput("guidance", "is Lucid Image Targets, which gives no gradient; connect Lucid ISM")
    if isinstance(guidance.prompt, LucidPictureData):
        raise BadInput("guidance", "has a picture as its prompt; connect a Lucid Prompt to Lucid ISM")
    if host.carries_control(list(guidance.prompt.conditionings().values())) or guidance.prompt.controls:
        raise BadInput("guidance", "has a ControlNet, which belongs to views of a splat; leave it out")


def masks_of(mask: torch.Tensor | None, pictures: torch.Tensor) -> list[torch.Tensor | None]:
    """One mask (H, W) for each picture. Raises BadInput for other numbers or sizes."""
    if mask is None:
        return [None] * len(pictures)
    masks = torch.clone(mask.cpu().float()).clamp(0, 1)
    masks = masks.reshape(-1, *masks.shape[-2:])
    if len(masks) not in (1, len(pictures)):
        raise BadInput(
            "mask", f"has {len(masks)} masks for {len(pictures)} pictures; give one, or one for each"
        )
    masks = masks.expand(len(pictures), -1, -1)
    for one, picture in zip(masks, pictures):
        require_mask(one, picture)
    return list(masks)


def follow(steps: Iterable[Edited], progress: host.Progress, done: int, total: int) -> Edited:
    """Show all steps of a picture, after `done` earlier ones; return the last. Raises if the user cancels."""
    every = max(total // PREVIEWS, 1)
    for step in steps:
        shown = step.step % every == 0 and step.step < total
        progress.update(done + step.step, step.picture() if shown else None)
        host.check_interrupt()
    return step


def rescue(images: list[torch.Tensor], node_id: str | None) -> None:
    """Save the pictures (H, W, 3) that were finished when a run was stopped; show and log where they are."""
    names = []
    try:
        for picture in video.to_uint8(torch.stack(images)) if images else ():
            path, entry = host.output_path(UNFINISHED, "png")
            video.write_png(path, picture)
            names.append(host.name_of(entry))
    except OSError as error:  # a full disk must not hide the error that stopped the run
        log.error("%s could not save the finished pictures: %s", TITLE, error)
    if names:
        text = f"Stopped. {len(names)} finished: {names[0]}" + (f" to {names[-1]}" if names[1:] else "")
        log.warning("%s: %s", TITLE, text)
        host.show_text(node_id, text)
