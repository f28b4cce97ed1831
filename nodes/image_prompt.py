import logging

import torch
from comfy_api.latest import IO

from ..lucid_core.conditioning.picture import Picture, PictureView, frame_picture, marks_background
from ..lucid_core.errors import BadInput
from ..lucid_core.settings import bounds_of
from . import host
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidPictureData, LucidPromptType

log = logging.getLogger(__name__)
CUT_OUT = (
    "connect the mask of Remove Background (with Load Background Removal Model), or a picture with an alpha "
    "channel (Join Image with Alpha)"
)


class LucidImagePrompt(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidImagePrompt",
            display_name="Lucid Image Prompt (Zero123)",
            category=CATEGORY,
            search_aliases=[
                "image to 3d",
                "image to splat",
                "picture prompt",
                "stable zero123",
                "novel view",
                "single image 3d",
            ],
            description="Turns one picture of an object into a prompt for Stable Zero123 and similar models, "
            "which get the camera of each view. The picture is also fitted as a view of its own.",
            inputs=[
                IO.ClipVision.Input(
                    "clip_vision",
                    lazy=True,
                    tooltip="CLIP_VISION of the Stable Zero123 checkpoint (Load Checkpoint Image Only).",
                ),
                IO.Vae.Input(
                    "vae",
                    lazy=True,
                    tooltip="VAE of the Stable Zero123 checkpoint (Load Checkpoint Image Only).",
                ),
                IO.Image.Input(
                    "image",
                    tooltip="Picture of the whole object, at least 64 px. Its background becomes white; it "
                    "needs a mask or an alpha channel.",
                ),
                IO.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the object is, from Remove Background (1 = object). The mask of Load "
                    "Image, which is 1 on the transparent border, is inverted. Not connected = the alpha "
                    "channel of the image.",
                ),
                IO.Image.Input(
                    "depth",
                    optional=True,
                    tooltip="Depth map of the picture, white = near (as by Depth Anything). It holds for the "
                    "picture's own view, up to scale and shift.",
                ),
                *inputs_of(PictureView),
                IO.Int.Input(
                    "size",
                    default=256,
                    min=64,
                    max=1024,
                    step=8,
                    optional=True,
                    advanced=True,
                    tooltip="Side of the picture that the model is given, in pixels. Use the resolution of "
                    "Lucid Dream. 256 = as Stable Zero123 was trained.",
                ),
            ],
            outputs=[LucidPromptType.Output(display_name="prompt", tooltip="The encoded picture.")],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, image=None, mask=None, depth=None, clip_vision=None, vae=None, **settings):
        with errors_of(cls):
            if isinstance(image, torch.Tensor):  # known by now, unless its node is lazy too
                picture_of(image, mask, depth, view_of(settings))
            return [name for name, value in (("clip_vision", clip_vision), ("vae", vae)) if value is None]

    @classmethod
    def execute(cls, clip_vision, vae, image, mask=None, depth=None, size=256, **settings) -> IO.NodeOutput:
        with errors_of(cls):
            picture, inverted = picture_of(image, mask, depth, view_of(settings))
            if inverted:
                note = "the mask is 1 on the border of the picture and was inverted: 1 = object."
                log.info("Lucid Image Prompt: %s", note)
                host.show_text(host.node_of_page(cls.hidden), note)
            positive, negative = host.encode_picture(clip_vision, vae, picture.at(size).rgb)
            return IO.NodeOutput(LucidPictureData(tuple(positive), negative, picture))


def view_of(settings: dict) -> PictureView:
    return PictureView(**{name: settings[name] for name in bounds_of(PictureView)})


def picture_of(
    image: torch.Tensor, mask: torch.Tensor | None, depth: torch.Tensor | None, view: PictureView
) -> tuple[Picture, bool]:
    """The framed picture of image (1, H, W, 3 or 4), and whether its mask was inverted.

    Raises BadInput for several pictures, one without mask and alpha, and what `frame_picture` refuses.
    """
    for name, batch in (("image", image), ("mask", mask), ("depth", depth)):
        if batch is not None and len(batch) != 1:
            raise BadInput(
                name, f"is a batch of {len(batch)}; connect one picture (Get Image from Batch picks one)"
            )
    if mask is None and image.shape[-1] != 4:
        raise BadInput("image", f"has no alpha channel and no mask; {CUT_OUT}")
    solid = image[0, ..., 3] if mask is None else mask[0]
    inverted = mask is not None and marks_background(solid)
    disparity = None if depth is None else depth[0, ..., :3].mean(-1).float()
    solid = (1 - solid if inverted else solid).float()
    try:
        return frame_picture(image[0, ..., :3].float(), solid, view, disparity), inverted
    except BadInput as error:
        remedy = f"; {CUT_OUT}" if error.name == "mask" else ""
        raise BadInput(error.name, error.problem + remedy) from error
