"""Graphs around the small models of families.py: their sources, their text, and what asks them."""

from .families import TAEF2, TEXT, file_of
from .graphs import Graph, workflow

ONE_FRAME = ("qwen_image", "krea2", "anima")  # on a video VAE
FLOWS = ("sd3", "flux", "flux_schnell", "flux2", "chroma", "z_image", *ONE_FRAME)
FAMILIES = ("sd15", "sd2", "sd2_v", "sdxl", "sdxl_v_ztsnr", "cosmos", *FLOWS)
BUILT = ("sd15_narrow", "chroma", "z_image", "qwen_image", "qwen_layered", "anima", "cosmos")  # by a node
OTHER_VAES = {  # than the demo's checkpoint's
    **dict.fromkeys((*FLOWS, "flux_fill"), "taesd_16_channels"),
    **dict.fromkeys((*ONE_FRAME, "qwen_layered", "cosmos", "wan"), "wan_vae"),
    "flux2": TAEF2,
}
CHECKPOINT = "lucid_demo_prior.safetensors"
BLEND = {
    "blend_deg": 90.0,
    "overhead_deg": 60.0,
    "perp_neg": 0.0,
    "perp_neg_front_decay": 2.0,
    "perp_neg_side_decay": 10.0,
}


class FamilyGraph(Graph):
    """A graph that holds a family's `model`, `vae` and `clip` as links, and can make text of the family's
    width.
    """

    def __init__(self, family):
        super().__init__()
        self.family, demo = family, self.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
        if family in BUILT:
            self.model = [self.add("LucidTestBuilt", family=family), 0]
        elif family == "demo":
            self.model = [demo, 0]
        else:
            self.model = [self.add("UNETLoader", unet_name=file_of(family), weight_dtype="default"), 0]
        self.clip, self.vae = [demo, 1], [demo, 2]
        if family in OTHER_VAES:
            self.use_vae(OTHER_VAES[family])

    def use_vae(self, name):
        self.vae = [self.add("VAELoader", vae_name=name if name == TAEF2 else file_of(name)), 0]

    def text(self, words):
        link = [self.add("CLIPTextEncode", clip=self.clip, text=words), 0]
        if self.family in TEXT:
            width, pooled = TEXT[self.family]
            link = [self.add("LucidTestWiden", conditioning=link, width=width, pooled=pooled), 0]
        if self.family == "anima":
            link = [self.add("LucidTestSpoilt", conditioning=link, change="T5 ids"), 0]
        return link

    def prompt(self, front="a red mushroom, front view", negative="blurry", perp_neg=0.0, **sides):
        """A LUCID_PROMPT of texts, or of links to conditionings."""
        given = {"front": front, "negative": negative, **sides}
        links = {name: self.text(value) if isinstance(value, str) else value for name, value in given.items()}
        return [self.add("LucidPromptFromConditioning", **links, **{**BLEND, "perp_neg": perp_neg}), 0]

    def patched(self, class_type, **inputs):
        """Puts a node of the host between the model and what asks it."""
        self.model = [self.add(class_type, model=self.model, **inputs), 0]

    def ask(self, class_type, prompt=None, **inputs):
        return self.add(class_type, model=self.model, vae=self.vae, prompt=prompt or self.prompt(), **inputs)

    def dream(self, prompt=None, **changes):
        """The shipped workflow's other nodes after this family's model."""
        shipped = workflow(LucidDream={"steps": 2, "views": 2, "resolution": 64, **changes})
        for name, node in shipped.items():
            inputs = {
                key: [f"w{value[0]}", value[1]] if isinstance(value, list) else value
                for key, value in node["inputs"].items()
            }
            self[f"w{name}"] = {"class_type": node["class_type"], "inputs": inputs}
        node = next(node for node in self.values() if node["class_type"] == "LucidISM")
        node["inputs"].update(model=self.model, vae=self.vae, prompt=prompt or self.prompt())
        for name in [name for name, node in self.items() if node["class_type"] in ("LucidPrompt",)]:
            del self[name]
        return self
