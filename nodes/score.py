from __future__ import annotations

import json
import logging
from typing import Any

import torch
from comfy_api.latest import IO

from ..lucid_core.conditioning.view_prompts import VIEWS
from ..lucid_core.errors import BadInput
from ..lucid_core.rasterize import Renderer
from ..lucid_core.score.chart import chart
from ..lucid_core.score.classifier import TOGETHER, WORDS, JudgeSettings, judge
from ..lucid_core.score.measures import Numbers, measure_splats, measure_views, silhouette_of, similarity
from ..lucid_core.score.report import Report
from ..lucid_core.score.views import pick_views, turntable_views
from ..lucid_core.settings import require
from . import host
from .guidance import missing
from .inputs import CATEGORY, backend_input, errors_of, fold_seed, inputs_of, seed_input
from .types import LucidJudgeData, LucidPictureData, LucidPromptData, LucidPromptType, LucidTexts

log = logging.getLogger(__name__)
SEPARATOR = "|"
NO_CLIP = "is missing, but other_texts holds texts; connect the model's text encoder"


class LucidScore(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidScore",
            display_name="Lucid Score",
            category=CATEGORY,
            search_aliases=[
                "splat metrics",
                "janus score",
                "many faces",
                "diffusion classifier",
                "clip score",
                "evaluate splat",
            ],
            description="Judges a splat from all sides by a diffusion model: does each view look like the "
            "prompt, and does the front appear again elsewhere? Also measures fog, floaters and colours.",
            inputs=[
                IO.Splat.Input("splat", optional=True, tooltip="Splat to judge. Or connect `image`."),
                IO.Image.Input(
                    "image",
                    optional=True,
                    tooltip="In place of a splat: at least 4 square views of one full turn that begins at "
                    "the front, on a plain background, as from Lucid Render.",
                ),
                IO.Model.Input(
                    "model",
                    lazy=True,
                    tooltip="Text-to-image model that judges. A model other than the one that made the splat "
                    "judges better.",
                ),
                IO.Vae.Input("vae", lazy=True, tooltip="VAE of the model."),
                LucidPromptType.Input(
                    "prompt",
                    lazy=True,
                    tooltip="Prompt of the object for this model, from Lucid Prompt.",
                ),
                *inputs_of(JudgeSettings),
                IO.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the views in pixels: the size that the model is made for.",
                ),
                IO.Float.Input(
                    "elevation",
                    default=15.0,
                    min=-90.0,
                    max=90.0,
                    step=1.0,
                    tooltip="Camera elevation in degrees above the horizon. Unused with `image`.",
                ),
                seed_input("score"),
                IO.String.Input(
                    "other_texts",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Texts to compare the prompt with, separated by |, e.g. 'a bowl | a cup'; each "
                    "is one more text for the model. Needs `clip`. Empty = none.",
                ),
                IO.Clip.Input(
                    "clip", optional=True, lazy=True, tooltip="Text encoder of the model, for `other_texts`."
                ),
                IO.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Also compare each view with the front by this model. Not connected = no.",
                ),
                backend_input(),
            ],
            outputs=[
                IO.Float.Output(
                    display_name="score",
                    tooltip="How well the prompt explains the views: higher is better. Compare only scores "
                    "of one model, prompt and resolution.",
                ),
                IO.Float.Output(
                    display_name="many_faces",
                    tooltip="Share of the views away from the front that the front text explains best; 0 = "
                    "one face.",
                ),
                IO.String.Output(display_name="report", tooltip="All numbers as JSON."),
                IO.Image.Output(
                    display_name="chart", tooltip="The report at a glance, seen from above and as bars."
                ),
            ],
            hidden=[IO.Hidden.dynprompt, IO.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(
        cls,
        views,
        max_evaluations,
        model=None,
        vae=None,
        prompt=None,
        other_texts="",
        **rest,
    ):
        with errors_of(cls):
            texts = texts_of(other_texts)
            JudgeSettings(views, max_evaluations).levels(views, number_of_texts(texts))
            # ComfyUI passes None for what is connected and not there yet
            require_one("splat" in rest, "image" in rest)
            if texts and "clip" not in rest:
                raise BadInput("clip", NO_CLIP)
            wanted = {"model": model, "vae": vae, "prompt": prompt}
            return missing({**wanted, "clip": rest["clip"]} if texts else wanted)

    @classmethod
    def execute(
        cls,
        model,
        vae,
        prompt,
        views,
        max_evaluations,
        resolution,
        elevation,
        seed,
        splat=None,
        image=None,
        other_texts="",
        clip=None,
        clip_vision=None,
        backend="auto",
    ) -> IO.NodeOutput:
        with errors_of(cls):
            settings, names = JudgeSettings(views, max_evaluations), texts_of(other_texts)
            texts = LucidTexts(prompt_of(model, vae, prompt), others_of(clip, names))
            require_one(splat is not None, image is not None)
            if splat is not None:
                pictures, measures = measure_splat(splat, views, resolution, elevation, backend)
                azimuth_deg = None
            else:
                pictures, azimuth_deg = pick_views(image, views, resolution)
                measures = measure_views(pictures, silhouette_of(pictures))
            asked = len(pictures) * number_of_texts(names)
            progress = host.Progress(settings.levels(len(pictures), number_of_texts(names)) * asked)

            def body(prior, prompts):
                own, others = prompts
                return judge(
                    prior, pictures, own, settings, others, fold_seed(seed), progress.update, azimuth_deg
                )

            data = LucidJudgeData(model, vae, texts)
            verdict = host.with_prior(data, min(TOGETHER, len(pictures)), pictures.shape[1], body)
            cosines = similarity(host.embed_images(clip_vision, pictures)).tolist() if clip_vision else None
            report = Report(verdict, prompt.text, measures, cosines)
            said = "\n".join(report.lines())
            log.info("Lucid Score: %s", said.replace("\n", "; "))
            host.show_text(host.node_of_page(cls.hidden), said)
            text = json.dumps(report.contents())
            return IO.NodeOutput(verdict.score, verdict.many_faces_rate, text, chart(report)[None])


def texts_of(other_texts: str) -> list[str]:
    """The texts between the separators. Raises BadSetting for a text that is given twice."""
    texts = list(filter(None, (text.strip() for text in other_texts.split(SEPARATOR))))
    require(len(set(texts)) == len(texts), "other_texts", repr(other_texts), "different texts")
    return texts


def number_of_texts(others: list[str]) -> int:
    """The texts that the model is asked about: those of WORDS, the negative one, and the others."""
    return len(WORDS) + 1 + len(others)


def others_of(clip: Any, texts: list[str]) -> dict[str, tuple]:
    """The CONDITIONINGs of VIEWS for each text, with the words that Lucid Prompt appends."""
    if texts and clip is None:
        raise BadInput("clip", NO_CLIP)
    return {text: tuple(host.encode_text(clip, f"{text}, {view} view") for view in VIEWS) for text in texts}


def prompt_of(model: Any, vae: Any, prompt: LucidPromptData | LucidPictureData) -> LucidPromptData:
    """The prompt, if `model` can judge by it. Raises BadInput if not."""
    if isinstance(prompt, LucidPictureData):
        raise BadInput(
            "prompt", "is a picture, without words for front, side and back; connect a Lucid Prompt"
        )
    host.require_image_model(model, vae)
    host.require_levels(model)
    host.require_prompt_of(model, prompt)
    if host.carries_control(list(prompt.conditionings().values())):
        raise BadInput(
            "prompt", "carries a ControlNet, which belongs to other pictures; connect the prompt without it"
        )
    return prompt


def require_one(has_splat: bool, has_image: bool) -> None:
    """Raise BadInput unless one of `splat` and `image` is connected."""
    if has_splat == has_image:
        both = "are both connected" if has_splat else "are both missing"
        raise BadInput("splat and image", f"{both}; connect one of them")


def measure_splat(
    splat: Any, views: int, size: int, elevation: float, backend: str
) -> tuple[torch.Tensor, Numbers]:
    """The views (V, size, size, 3) of a SPLAT, and all measures."""
    one, check = host.one_splat(splat), lambda done, picture: host.check_interrupt()
    pictures, alpha = turntable_views(one, views, size, elevation, Renderer(backend), check)
    return pictures, {**measure_views(pictures, alpha), **measure_splats(one, alpha)}
