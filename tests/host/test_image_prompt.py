"""Lucid Image Prompt in the real host: the camera of every view, Stable Zero123 beside a text model, bad
pictures and models.
"""

import pytest
from rounding import ROUNDINGS

from .failing import fails
from .family_graphs import CHECKPOINT
from .graphs import Graph, node_of, ply_of, summary_of, workflow

SETTINGS = {"elevation_deg": 0.0, "azimuth_deg": 0.0, "fill": 0.0, "weight": 1.0, "depth_weight": 0.1}


class PictureGraph(Graph):
    """A graph that holds a small Stable Zero123: `model`, `clip_vision`, `vae`, and a picture, as links."""

    def __init__(self, kind="good", width=768):
        super().__init__()
        zero123, picture = self.add("LucidTestZero123", width=width), self.add("LucidTestPicture", kind=kind)
        demo = self.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
        self.model, self.clip_vision, self.vae = [zero123, 0], [zero123, 1], [demo, 2]
        self.text_model, self.clip = [demo, 0], [demo, 1]
        self.image, self.mask = [picture, 0], [picture, 1]

    def prompt(self, mask=True, depth=False, vae=None, **settings):
        links = {"clip_vision": self.clip_vision, "vae": vae or self.vae, "image": self.image}
        if mask:
            links["mask"] = self.mask
        if depth:
            links["depth"] = self.image
        return [self.add("LucidImagePrompt", **links, **{**SETTINGS, "size": 64, **settings}), 0]

    def text(self):
        shipped = workflow()
        inputs = shipped[node_of(shipped, "LucidPrompt")]["inputs"]
        return [self.add("LucidPrompt", **{**inputs, "clip": self.clip}), 0]

    def guidance(self, class_type="LucidISM", model=None, prompt=None):
        shipped = workflow()
        inputs = shipped[node_of(shipped, "LucidISM")]["inputs"] if class_type == "LucidISM" else {}
        links = {"model": model or self.model, "vae": self.vae, "prompt": prompt or self.prompt()}
        return [self.add(class_type, **{**inputs, **links}), 0]

    def mix(self, mode, share=0.5, **more):
        text = self.guidance(model=self.text_model, prompt=self.text())
        links = {"first": self.guidance(), "second": text}
        return [self.add("LucidMix", **links, mode=mode, share=share, **more), 0]

    def dream(self, guidance, **changes):
        """The shipped workflow's other nodes after this guidance."""
        shipped = workflow(LucidDream={"steps": 2, "views": 2, "resolution": 64, **changes})
        moved = lambda value: [f"w{value[0]}", value[1]] if isinstance(value, list) else value
        for name, node in shipped.items():
            if node["class_type"] not in ("LucidISM", "LucidPrompt", "CheckpointLoaderSimple"):
                inputs = {key: moved(value) for key, value in node["inputs"].items()}
                self[f"w{name}"] = {"class_type": node["class_type"], "inputs": inputs}
        self[node_of(self, "LucidDream")]["inputs"]["guidance"] = guidance
        return self


def is_finite(splats):
    return len(splats) > 100 and all(x.isfinite().all() for x in vars(splats).values())


def test_the_camera_of_each_view_is_the_hosts_own(client):
    """Sign and zero of the azimuth and the elevation, the picture's latents and the negative: from the same
    latents to the same prediction as by StableZero123_Conditioning."""
    graph = PictureGraph()
    links = {"clip_vision": graph.clip_vision, "vae": graph.vae, "image": graph.image}
    node = graph.add(
        "LucidTestCamera",
        model=graph.model,
        **links,
        prompt=graph.prompt(),
        azimuths="0 90 -90 180 37",
        elevations="0 0 0 20 -50",
    )
    found = client.run(graph)["outputs"][node]
    near = ROUNDINGS * found["rounding"][0]
    assert all(far < near for far in (*found["far"], *found["negative"]))
    assert all(found["mirrored"][k] > 10 * near for k in (1, 2, 4))  # the opposite azimuth differs
    assert found["evaluations"] == [10]


def test_the_picture_has_a_camera_of_its_own(client):
    """A picture from azimuth 30: views 60 and -30 are at 30 and -60 to it."""
    graph = PictureGraph()
    links = {"clip_vision": graph.clip_vision, "vae": graph.vae, "image": graph.image}
    nodes = [
        graph.add(
            "LucidTestCamera",
            model=graph.model,
            **links,
            prompt=graph.prompt(azimuth_deg=azimuth),
            azimuths="60 -30",
            elevations="10 0",
        )
        for azimuth in (0.0, 30.0)
    ]
    outputs = client.run(graph)["outputs"]
    same, moved = (outputs[node]["far"] for node in nodes)
    assert max(same) < ROUNDINGS * outputs[nodes[0]]["rounding"][0] < min(moved) / 10


@pytest.mark.parametrize("picture", ["good", "alpha", "of Load Image"])
def test_a_splat_is_distilled_from_a_picture(client, server, picture):
    graph = PictureGraph(picture)
    prompt = graph.prompt(mask=picture != "alpha", depth=picture == "good", fill=0.5)
    splats = ply_of(client, client.run(graph.dream(graph.guidance(prompt=prompt), seed=171)))
    assert is_finite(splats)
    log = server.log_tail().rsplit("got prompt", 1)[-1]
    assert ("was inverted" in log) == (picture == "of Load Image")
    assert "use a resolution of 256" in log


@pytest.mark.parametrize("mode", ["add", "switch", "sequence", "alternate"])
def test_a_camera_model_and_a_text_model_are_mixed_and_the_run_is_resumed(client, mode):
    more = {"share_last": 0.8} if mode in ("add", "alternate") else {}
    run = lambda **changes: client.run(
        (graph := PictureGraph()).dream(graph.mix(mode, **more), steps=4, seed=172, **changes)
    )
    whole = run()
    assert is_finite(ply_of(client, whole))
    again = run(resume=summary_of(whole)["checkpoint"])
    a, b = (vars(ply_of(client, entry)).values() for entry in (whole, again))
    assert all((x == y).all() for x, y in zip(a, b))


def test_a_run_of_another_picture_is_not_resumed(client):
    graph = PictureGraph()
    whole = client.run(graph.dream(graph.guidance(), seed=173))
    other = PictureGraph()
    guidance = other.guidance(prompt=other.prompt(azimuth_deg=10.0))
    checkpoint = summary_of(whole)["checkpoint"]
    with fails("LucidDream", "OtherRun", "", "conditioning was "):
        client.run(other.dream(guidance, seed=173, resume=checkpoint))


@pytest.mark.parametrize(
    "kind, mask, name, words",
    [
        ("good", False, "image", ["no alpha channel and no mask", "Remove Background"]),
        ("opaque", False, "mask", ["marks 1 of the picture", "Remove Background"]),
        ("no object", True, "mask", ["marks 0 of the picture", "Remove Background"]),
        ("several", True, "image", ["a batch of 2", "Get Image from Batch"]),
        ("small", True, "image", ["48 x 48 px", "at least 64"]),
    ],
)
def test_a_bad_picture_is_refused_before_a_model_is_loaded(client, kind, mask, name, words):
    graph = PictureGraph(kind)
    never = graph.add("LucidTestNeverLoaded")
    with fails("LucidImagePrompt", "BadInput", name, *words):
        client.run(graph.dream(graph.guidance(prompt=graph.prompt(mask=mask, vae=[never, 2]))))


def test_an_elevation_out_of_range_is_refused(client):
    graph = PictureGraph()
    with fails("LucidImagePrompt", "value_bigger_than_max", "elevation_deg"):
        client.run(graph.dream(graph.guidance(prompt=graph.prompt(elevation_deg=85.0))))


def test_an_encoder_of_another_width_is_refused(client):
    graph = PictureGraph(width=1024)
    with fails("LucidImagePrompt", "BadInput", "clip_vision", "width 1024", "768"):
        client.run(graph.dream(graph.guidance()))


@pytest.mark.parametrize("change", ["vae channels", "video vae"])
def test_a_vae_of_another_width_is_refused(client, change):
    graph = PictureGraph()
    other = graph.add("LucidTestModel", model=graph.model, vae=graph.vae, change=change)
    with fails("LucidImagePrompt", "BadInput", "vae", "Stable Zero123 reads 4 channels in 2"):
        client.run(graph.dream(graph.guidance(prompt=graph.prompt(vae=[other, 1]))))


def test_a_camera_model_with_a_text_names_the_node_to_use(client):
    graph = PictureGraph()
    with fails("LucidISM", "BadInput", "prompt", "is text", "Lucid Image Prompt (Zero123)"):
        client.run(graph.dream(graph.guidance(prompt=graph.text())))


def test_a_text_model_with_a_picture_names_the_loader(client):
    graph = PictureGraph()
    with fails("LucidISM", "BadInput", "model", "SD15 reads text", "Load Checkpoint Image Only"):
        client.run(graph.dream(graph.guidance(model=graph.text_model)))


def test_a_controlnet_on_a_picture_is_refused(client):
    graph = PictureGraph()
    control = graph.add("LucidControlNet", prompt=graph.prompt(), hint="depth", strength=1.0)
    with fails("LucidControlNet", "BadInput", "prompt", "is a picture"):
        client.run(graph.dream(graph.guidance(prompt=[control, 0])))
