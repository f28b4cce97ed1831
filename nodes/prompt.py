import logging

from comfy_api.latest import IO

from ..lucid_core.checks import bounds_of
from ..lucid_core.views import VIEWS, ViewBlend, without
from . import host
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidPromptData, LucidPromptType

log = logging.getLogger(__name__)


class LucidPrompt(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        words = [
            IO.String.Input(
                view, default=f"{view} view", advanced=True,
                tooltip=f"Added to the text for cameras that see the {view}. Empty = the text alone.",
            )
            for view in VIEWS
        ]  # fmt: skip
        return IO.Schema(
            node_id="LucidPrompt",
            display_name="Lucid Prompt",
            category=CATEGORY,
            search_aliases=["text to 3d prompt", "view dependent prompt", "clip text encode 3d"],
            description="Encodes a text once for each side of the object, so that the model is asked for the front from the "
            "front and for the back from behind.",
            inputs=[
                IO.Clip.Input("clip", lazy=True, tooltip="Text encoder of the checkpoint that will guide the splat."),
                IO.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The object, e.g. 'a red mushroom'."),
                IO.String.Input(
                    "negative", multiline=True, default="", dynamic_prompts=True, tooltip="What it must not be; may be empty."
                ),
                *words,
                IO.String.Input(
                    "inverse", default="", advanced=True,
                    tooltip="Prompt of the DDIM inversion (ISM). Empty = unconditional, as in the paper.",
                ),
                IO.String.Input(
                    "front_words", default="", advanced=True,
                    tooltip="Words of the text that only the front shows, e.g. 'smiling, blue eyes': they are left out for "
                    "all other sides. Empty = none.",
                ),
                *inputs_of(ViewBlend),
            ],
            outputs=[LucidPromptType.Output(display_name="prompt", tooltip="The text, encoded for every side.")],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, text, front_words, clip=None, **rest):
        with errors_of(cls):
            texts_of(text, front_words)
            ViewBlend(**{name: rest[name] for name in bounds_of(ViewBlend)})
            return ["clip"] if clip is None else []

    @classmethod
    def execute(cls, clip, text, negative, front, side, back, overhead, inverse, front_words, **blend) -> IO.NodeOutput:
        with errors_of(cls):
            host.require_clip(clip)
            full, rest, missing = texts_of(text, front_words)
            if missing:
                named = ", ".join(map(repr, missing))
                note = f"front_words: the text does not hold {named}, so that has no effect."
                log.warning("Lucid Prompt: %s", note)
                host.show_text(host.node_of_page(cls.hidden), note)
            pairs = ((full, front), (rest, side), (rest, back), (rest, overhead))
            texts = [", ".join(part for part in (what, word.strip()) if part) for what, word in pairs]
            views = tuple(host.encode_text(clip, view) for view in texts)
            encoded = [host.encode_text(clip, other) for other in (negative, inverse)]
            return IO.NodeOutput(LucidPromptData(text, views, *encoded, ViewBlend(**blend)))


def texts_of(text: str, front_words: str) -> tuple[str, str, list[str]]:
    """The text for the front, that for the other sides, and the front words that it does not hold."""
    if not text.strip():
        raise ValueError("text is empty; say what the object is, e.g. 'a red mushroom'")
    rest, missing = without(text, front_words) if front_words.strip() else (text.strip(), [])
    if not rest:
        raise ValueError(f"front_words is {front_words!r}, which leaves nothing of text; name fewer words")
    return text.strip(), rest, missing


class LucidPromptFromConditioning(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        sides = [
            IO.Conditioning.Input(
                view, optional=True,
                tooltip=f"What the model is asked for where a camera sees the {view}; not connected = front.",
            )
            for view in VIEWS[1:]
        ]  # fmt: skip
        return IO.Schema(
            node_id="LucidPromptFromConditioning",
            display_name="Lucid Prompt From Conditioning",
            category=CATEGORY,
            search_aliases=["conditioning to prompt", "view conditionings", "flux guidance 3d", "regional prompt 3d"],
            description="A prompt of ComfyUI's own CONDITIONINGs, one for each side of the object: with Flux Guidance, SDXL's "
            "sizes, prompt schedules, regions, or whatever other nodes make of a text.",
            inputs=[
                IO.Conditioning.Input("front", tooltip="What the model is asked for where a camera sees the front."),
                *sides,
                IO.Conditioning.Input(
                    "negative", optional=True,
                    tooltip="What it must not be; not connected = front with all its text zeroed, as Conditioning Zero Out "
                    "does it.",
                ),
                IO.Conditioning.Input(
                    "inverse", optional=True,
                    tooltip="Prompt of the DDIM inversion (ISM), by the paper an empty text; not connected = negative.",
                ),
                *inputs_of(ViewBlend),
            ],
            outputs=[LucidPromptType.Output(display_name="prompt", tooltip="The conditionings of every side.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, front, side=None, back=None, overhead=None, negative=None, inverse=None, **blend) -> IO.NodeOutput:
        with errors_of(cls):
            views = tuple(view or front for view in (front, side, back, overhead))
            negative = negative or host.zeroed(front)
            return IO.NodeOutput(LucidPromptData("", views, negative, inverse or negative, ViewBlend(**blend)))
