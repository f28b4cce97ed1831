import logging

from comfy_api.latest import IO

from ..lucid_core.conditioning.view_prompts import VIEWS, ViewBlend, without
from ..lucid_core.settings import bounds_of, require
from . import host
from .inputs import CATEGORY, errors_of, inputs_of
from .types import LucidPromptData, LucidPromptType

log = logging.getLogger(__name__)


class LucidPrompt(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        words = [
            IO.String.Input(
                view,
                default=f"{view} view",
                advanced=True,
                tooltip=f"Text appended to the prompt for {view} views. Empty = nothing is appended.",
            )
            for view in VIEWS
        ]
        return IO.Schema(
            node_id="LucidPrompt",
            display_name="Lucid Prompt",
            category=CATEGORY,
            search_aliases=["text to 3d prompt", "view dependent prompt", "clip text encode 3d"],
            description="Encodes the prompt separately for front, side, back and overhead views, so that "
            "each rendered view gets a matching prompt.",
            inputs=[
                IO.Clip.Input(
                    "clip",
                    lazy=True,
                    tooltip="Text encoder (CLIP) of the checkpoint that provides the guidance.",
                ),
                IO.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Prompt that describes the object, e.g. 'a red mushroom'.",
                ),
                IO.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="Negative prompt. May be empty.",
                ),
                *words,
                IO.String.Input(
                    "inverse",
                    default="",
                    advanced=True,
                    tooltip="Inversion prompt of ISM: for the DDIM inversion and the reference prediction, "
                    "also with inversion_steps 0. Empty = unconditional, as in the paper.",
                ),
                IO.String.Input(
                    "front_words",
                    default="",
                    advanced=True,
                    tooltip="Words of the text that apply only to the front, e.g. 'smiling, blue eyes'. "
                    "They are removed from the prompts of the other views. Empty = none.",
                ),
                *inputs_of(ViewBlend),
            ],
            outputs=[
                LucidPromptType.Output(display_name="prompt", tooltip="The encoded prompt for each view.")
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, text, front_words, clip=None, **rest):
        with errors_of(cls):
            texts_of(text, front_words)
            ViewBlend(**{name: rest[name] for name in bounds_of(ViewBlend)})
            return ["clip"] if clip is None else []

    @classmethod
    def execute(
        cls, clip, text, negative, front, side, back, overhead, inverse, front_words, **blend
    ) -> IO.NodeOutput:
        with errors_of(cls):
            host.require_clip(clip)
            full, rest, missing = texts_of(text, front_words)
            if missing:
                named = ", ".join(map(repr, missing))
                note = f"front_words: the text does not contain {named}, which therefore has no effect."
                log.warning("Lucid Prompt: %s", note)
                host.show_text(host.node_of_page(cls.hidden), note)
            pairs = ((full, front), (rest, side), (rest, back), (rest, overhead))
            texts = [", ".join(part for part in (what, word.strip()) if part) for what, word in pairs]
            views = tuple(host.encode_text(clip, view) for view in texts)
            encoded = [host.encode_text(clip, other) for other in (negative, inverse)]
            return IO.NodeOutput(LucidPromptData(text, views, *encoded, ViewBlend(**blend)))


def texts_of(text: str, front_words: str) -> tuple[str, str, list[str]]:
    """Split off the words that apply only to the front.

    Returns the text for the front view, the text for the other views, and those front words that the text
    does not contain. Raises BadSetting if one of the two texts is empty.
    """
    require(bool(text.strip()), "text", "empty", "a description of the object, e.g. 'a red mushroom'")
    rest, missing = without(text, front_words) if front_words.strip() else (text.strip(), [])
    require(bool(rest), "front_words", repr(front_words), "fewer words: these remove the whole text")
    return text.strip(), rest, missing


class LucidPromptFromConditioning(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        sides = [
            IO.Conditioning.Input(
                view,
                optional=True,
                tooltip=f"Positive conditioning for {view} views. Not connected = the same as front.",
            )
            for view in VIEWS[1:]
        ]
        return IO.Schema(
            node_id="LucidPromptFromConditioning",
            display_name="Lucid Prompt From Conditioning",
            category=CATEGORY,
            search_aliases=[
                "conditioning to prompt",
                "view conditionings",
                "flux guidance 3d",
                "regional prompt 3d",
            ],
            description="Builds a view-dependent prompt from ComfyUI conditionings, one per view. Use it "
            "for Flux Guidance, SDXL sizes, prompt schedules, regions or other conditioning nodes.",
            inputs=[
                IO.Conditioning.Input("front", tooltip="Positive conditioning for front views."),
                *sides,
                IO.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Negative conditioning. Not connected = front with its text embedding zeroed, "
                    "as by Conditioning Zero Out.",
                ),
                IO.Conditioning.Input(
                    "inverse",
                    optional=True,
                    tooltip="Conditioning of ISM's DDIM inversion and reference prediction; empty in the "
                    "paper. Not connected = the same as negative.",
                ),
                *inputs_of(ViewBlend),
            ],
            outputs=[
                LucidPromptType.Output(display_name="prompt", tooltip="The conditionings of all views.")
            ],
        )

    @classmethod
    def execute(
        cls, front, side=None, back=None, overhead=None, negative=None, inverse=None, **blend
    ) -> IO.NodeOutput:
        with errors_of(cls):
            views = tuple(view or front for view in (front, side, back, overhead))
            negative = negative or host.zero_out(front)
            return IO.NodeOutput(
                LucidPromptData("", views, negative, inverse or negative, ViewBlend(**blend))
            )
