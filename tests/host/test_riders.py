"""Whatever rides on MODEL and CONDITIONING: HostPrior's predictions change exactly as the host's own sampler
says.
"""

import json

import pytest
from rounding import ROUNDINGS

from lucid_core.guidance.sdi import SDI
from lucid_core.settings import bounds_of

from .failing import fails
from .families import LORAS, TEXT_LORA, WORD, file_of
from .family_graphs import BLEND, FamilyGraph
from .graphs import ply_of, summary_of

pytestmark = pytest.mark.usefixtures("families")


def euler(client, graph, prompt=None, cfg=3.0):
    """Three Euler steps of the host's and of ours: see LucidTestEuler."""
    node = graph.ask("LucidTestEuler", prompt, cfg=cfg, steps=3)
    return client.run(graph)["outputs"][node]


def require_same_change(found, plain):
    """Ours ends where the host's does, and 40 roundings apart from where both end without the rider."""
    bound = ROUNDINGS * found["rounding"][0]
    assert found["after"][0] < bound
    assert max(abs(a - b) for a, b in zip(found["z"], plain)) > max(5 * bound, 1e-3)


def loras(graph, *names):
    for name in names:
        graph.patched("LoraLoaderModelOnly", lora_name=file_of(name), strength_model=0.8)


MODEL_RIDERS = {
    "a LoRA": lambda graph: loras(graph, LORAS[0]),
    "two LoRAs": lambda graph: loras(graph, *LORAS),
    "attention patch": lambda graph: graph.patched("LucidTestAttention"),
    "Rescale CFG": lambda graph: graph.patched("RescaleCFG", multiplier=0.7),
    "Mahiro": lambda graph: graph.patched("Mahiro"),
    "CFG Zero Star": lambda graph: graph.patched("CFGZeroStar"),
    "APG": lambda graph: graph.patched("APG", eta=1.0, norm_threshold=5.0, momentum=0.0),
    "PAG": lambda graph: graph.patched("PerturbedAttentionGuidance", scale=3.0),
    "v prediction": lambda graph: graph.patched("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True),
}


@pytest.fixture(scope="module")
def plain(client):
    return euler(client, FamilyGraph("sd15"))["z"]


@pytest.mark.parametrize("rider", MODEL_RIDERS)
def test_what_rides_on_a_model_changes_the_prediction_as_in_the_host(client, plain, rider):
    graph = FamilyGraph("sd15")
    MODEL_RIDERS[rider](graph)
    require_same_change(euler(client, graph), plain)


@pytest.mark.parametrize(
    "node, strengths", [("FreeU", (1.1, 1.2, 0.9, 0.2)), ("FreeU_V2", (1.3, 1.4, 0.9, 0.2))]
)
def test_freeu_changes_the_prediction_as_in_the_host(client, node, strengths):
    graph = FamilyGraph("sd15_narrow")
    plain = euler(client, graph)["z"]
    graph.patched(node, **dict(zip(("b1", "b2", "s1", "s2"), strengths)))
    require_same_change(euler(client, graph), plain)


def half_of(graph, left):
    """A mask of one half of the picture."""
    empty = graph.add("SolidMask", value=0.0, width=64, height=64)
    full = graph.add("SolidMask", value=1.0, width=32, height=64)
    place = {"x": 0 if left else 32, "y": 0, "operation": "add"}
    return [graph.add("MaskComposite", destination=[empty, 0], source=[full, 0], **place), 0]


def regions(graph):
    halves = [
        [
            graph.add(
                "ConditioningSetMask",
                conditioning=graph.text(words),
                mask=half_of(graph, left),
                strength=1.0,
                set_cond_area="default",
            ),
            0,
        ]
        for words, left in (("a red mushroom", True), ("a blue mug", False))
    ]
    return [graph.add("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1]), 0]


def schedule(graph):
    parts = [
        [graph.add("ConditioningSetTimestepRange", conditioning=graph.text(words), start=start, end=end), 0]
        for words, start, end in (("a red mushroom", 0.0, 0.5), ("a blue mug", 0.5, 1.0))
    ]
    return [graph.add("ConditioningCombine", conditioning_1=parts[0], conditioning_2=parts[1]), 0]


def hooked(graph):
    """A LoRA for this conditioning alone."""
    hook = graph.add("CreateHookLora", lora_name=file_of(LORAS[0]), strength_model=0.8, strength_clip=0.0)
    place = {"strength": 1.0, "set_cond_area": "default"}
    return [
        graph.add(
            "ConditioningSetProperties", cond_NEW=graph.text("a red mushroom"), hooks=[hook, 0], **place
        ),
        0,
    ]


TEXT_RIDERS = {
    "prompt weights": lambda graph: graph.text("a (red:1.4) mushroom, front view"),
    "textual inversion": lambda graph: graph.text(
        f"a embedding:{file_of(WORD).removesuffix('.safetensors')}, front view"
    ),
    "schedule": schedule,
    "regions": regions,
    "LoRA hook": hooked,
}


@pytest.mark.parametrize("rider", TEXT_RIDERS)
def test_what_rides_on_a_conditioning_changes_the_prediction_as_in_the_host(client, plain, rider):
    graph = FamilyGraph("sd15")
    require_same_change(euler(client, graph, graph.prompt(TEXT_RIDERS[rider](graph))), plain)


def test_clip_skip_and_a_lora_of_the_text_encoder_ride_on_the_conditioning(client):
    """One LoRA on model and text, then without the text encoder's last layer."""
    ends = []
    for layer in (-1, -2):
        graph = FamilyGraph("sd15")
        both = graph.add(
            "LoraLoader",
            model=graph.model,
            clip=graph.clip,
            lora_name=file_of(TEXT_LORA),
            strength_model=1.0,
            strength_clip=1.0,
        )
        graph.model = [both, 0]
        graph.clip = [graph.add("CLIPSetLastLayer", clip=[both, 1], stop_at_clip_layer=layer), 0]
        ends.append(euler(client, graph))
    require_same_change(ends[1], ends[0]["z"])


def test_flux_guidance_rides_on_its_conditioning(client):
    ends = []
    for strength in (1.0, 6.0):
        graph = FamilyGraph("flux")
        front = [graph.add("FluxGuidance", conditioning=graph.text("a red mushroom"), guidance=strength), 0]
        ends.append(euler(client, graph, graph.prompt(front), cfg=1.0))
    require_same_change(ends[1], ends[0]["z"])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_blended_views_are_the_hosts_average_of_their_texts(client, family):
    """Also SDXL's y: pooled text and sizes, row by row."""
    graph = FamilyGraph(family)
    front, back = graph.text("a red mushroom, front view"), graph.text("a blue mug, back view")
    average = [
        graph.add(
            "ConditioningAverage", conditioning_to=front, conditioning_from=back, conditioning_to_strength=0.5
        ),
        0,
    ]
    node = graph.ask("LucidTestBlend", graph.prompt(front, back=back), average=average)
    found = client.run(graph)["outputs"][node]
    bound = ROUNDINGS * found["rounding"][0]
    assert (
        found["average"][0] < bound
        and found["alone"][0] < bound
        and found["apart"][0] > 1e-2
        and found["entries"] == [1]
    )


@pytest.mark.parametrize("rider", ["regions", "schedule", "LoRA hook", "longer text"])
@pytest.mark.parametrize("family", ["sd15", "sd3", "flux2", "qwen_image"])
def test_views_of_different_structure_are_asked_one_by_one_and_their_answers_blended(client, family, rider):
    if family != "sd15" and rider == "LoRA hook":
        pytest.skip("the LoRA is of sd15")
    graph = FamilyGraph(family)
    if rider == "longer text":
        back = [
            graph.add("LucidTestSpoilt", conditioning=graph.text("a blue mug"), change="77 tokens more"),
            0,
        ]
    else:
        back = TEXT_RIDERS[rider](graph)
    node = graph.ask("LucidTestBlend", graph.prompt(back=back))
    found = client.run(graph)["outputs"][node]
    bound = ROUNDINGS * found["rounding"][0]
    assert found["alone"][0] < bound and found["apart"][0] > 1e-2
    one_by_one = not (
        family == "sd15" and rider == "longer text"
    )  # cross-attention takes texts of two lengths
    assert (found["entries"][0] > 1) == one_by_one
    if one_by_one:
        assert found["mixed"][0] < bound
    if rider in ("regions", "longer text"):
        ply_of(client, client.run(graph.dream(graph.prompt(back=back), seed=93)))


@pytest.mark.parametrize("family", ["sd15", "qwen_image"])
def test_a_splat_is_distilled_through_patches_of_cfg(client, family):
    """Also with Perp-Neg, and where the patch asks again about views of different structure."""
    graph = FamilyGraph(family)
    graph.patched("RescaleCFG", multiplier=0.7)
    if family == "sd15":
        graph.patched("PerturbedAttentionGuidance", scale=3.0)
    prompt = graph.prompt(back=regions(graph), perp_neg=2.0)
    splats = ply_of(client, client.run(graph.dream(prompt, seed=95)))
    assert len(splats) > 100 and all(x.isfinite().all() for x in vars(splats).values())


def test_without_guidance_the_negative_prompt_is_asked_for_patches_of_cfg_alone(client):
    """As the host's sampler leaves it out at a cfg of 1."""
    counts = {}
    for patches in ([], [("RescaleCFG", {"multiplier": 0.7})]):
        for cfg in (1.0, 7.5):
            graph = FamilyGraph("sd15")
            for kind, inputs in patches:
                graph.patched(kind, **inputs)
            graph.dream(steps=2)
            ism = next(node for node in graph.values() if node["class_type"] == "LucidISM")
            ism["inputs"].update({"preset.cfg": cfg, "preset.cfg_start": cfg, "surface_share": 0.0})
            counts[len(patches), cfg] = summary_of(client.run(graph))["evaluations"]
    steps_of_two_views = 2 * 2
    assert counts[0, 7.5] - counts[0, 1.0] == steps_of_two_views
    assert counts[1, 1.0] == counts[1, 7.5] == counts[0, 7.5]


def test_patches_know_what_is_asked_without_the_prompt(client):
    """An IP-Adapter's image must count for the prompts of all views, and for neither the negative one nor the
    inversion.
    """
    graph = FamilyGraph("sd15")
    graph.patched("LucidTestAttention")
    node = graph.ask("LucidTestRoles")
    found = client.run(graph)["outputs"][node]
    assert found == {"together": [0, 0, 1], "inverse": [1]}


def test_what_is_not_connected_falls_back(client):
    """Sides to the front; the negative prompt to the front's zeroed text; the inverse to the negative."""
    graph = FamilyGraph("sd15")
    front = graph.text("a red mushroom")
    zeroed = [graph.add("ConditioningZeroOut", conditioning=front), 0]
    alone = [graph.add("LucidPromptFromConditioning", front=front, **BLEND), 0]
    full = {name: front for name in ("front", "side", "back", "overhead")} | {
        "negative": zeroed,
        "inverse": zeroed,
    }
    spelt = [graph.add("LucidPromptFromConditioning", **full, **BLEND), 0]
    first, second = (ply_of(client, client.run(graph.dream(prompt, seed=94))) for prompt in (alone, spelt))
    assert (first.means == second.means).all()


REFUSED = {
    "CFG Override": (
        {"class_type": "CFGOverride", "cfg": 1.0, "start_percent": 0.0, "end_percent": 1.0},
        "CFG Override",
    ),
    "EasyCache": (
        {
            "class_type": "EasyCache",
            "reuse_threshold": 0.2,
            "start_percent": 0.15,
            "end_percent": 0.95,
            "verbose": False,
        },
        "EasyCache",
    ),
    "SLG simple": (
        {
            "class_type": "SkipLayerGuidanceDiTSimple",
            "double_layers": "0",
            "single_layers": "0",
            "start_percent": 0.0,
            "end_percent": 1.0,
        },
        "evaluates both prompts itself",
    ),
}


@pytest.mark.parametrize("rider", REFUSED)
def test_patches_of_a_samplers_steps_are_refused_by_name(client, rider):
    patch, word = REFUSED[rider]
    graph = FamilyGraph("sd15")
    graph.patched(**patch)
    with fails("LucidISM", "BadInput", "model carries ", word):
        client.run(graph.dream())


def test_gligen_is_refused(client):
    graph = FamilyGraph("sd15")
    boxes = [graph.add("LucidTestSpoilt", conditioning=graph.text("a mug"), change="GLIGEN boxes"), 0]
    with fails("LucidISM", "BadInput", "conditioning front holds GLIGEN boxes"):
        client.run(graph.dream(graph.prompt(boxes)))


@pytest.mark.parametrize("method", ["LucidISM", "LucidBaseline", "LucidISM of an expanded node"])
def test_a_lora_that_fits_nothing_is_refused(client, method):
    """The host only warns. Behind it stands one that fits. Nodes of the host's loops exist only while it
    runs.
    """
    graph = FamilyGraph("sdxl")
    if not method.endswith("expanded node"):
        loras(graph, LORAS[0])
        graph.patched("RescaleCFG", multiplier=0.7)
    graph.dream()
    node = next(node for node in graph.values() if node["class_type"] == "LucidISM")
    sources = {name: node["inputs"].pop(name) for name in ("model", "vae", "prompt")}
    if method == "LucidBaseline":
        node["class_type"] = method
        node["inputs"] = {
            "method": "SDI",
            **{f"method.{name}": getattr(SDI(), name) for name in bounds_of(SDI)},
        }
    elif method != "LucidISM":
        node["class_type"] = "LucidTestExpanded"
        node["inputs"] = {"lora": file_of(LORAS[0]), "ism": json.dumps(node["inputs"])}
    node["inputs"] |= sources
    words = ("model KOALA_700M", "diffusion_model")
    with fails(node["class_type"], "BadFile", f"{file_of(LORAS[0])}: ", *words):
        client.run(graph)
