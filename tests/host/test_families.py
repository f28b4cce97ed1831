"""Every family of image models, through the host's own loaders: the same predictions as its sampler, and a
splat.
"""

import ast
from pathlib import Path

import pytest
from rounding import ROUNDINGS

from .failing import fails
from .families import VAES
from .family_graphs import FAMILIES, FLOWS, FamilyGraph
from .graphs import ply_of

pytestmark = pytest.mark.usefixtures("families")
NEWER = {"Trellis2"}  # families that ComfyUI 0.30 has not yet
SHIFT = {"sd3": 3.0, "flux_schnell": 1.0, "z_image": 3.0, "anima": 3.0}
SHIFT |= dict.fromkeys(("flux", "chroma", "qwen_image", "krea2"), 3.1582)  # e^1.15
SHIFT["flux2"] = 7.5383  # e^2.02


def found_by(client, graph, node):
    return client.run(graph)["outputs"][node]


@pytest.mark.parametrize(
    "family, vae", [*((family, None) for family in FAMILIES), ("qwen_image", "rgba_vae")]
)
def test_ten_euler_steps_in_our_form_end_where_the_hosts_end(client, family, vae):
    """v to eps, the change of variables of flows, and the shift: from the same noise to the same latent, with
    cfg. A VAE of RGBA, as the one of Qwen-Image 2.1, gets opaque views."""
    graph = FamilyGraph(family)
    if vae:
        graph.use_vae(vae)
    found = found_by(client, graph, graph.ask("LucidTestEuler", cfg=3.0, steps=10))
    assert found["after"][0] < ROUNDINGS * found["rounding"][0]
    assert all(far < ROUNDINGS * unit for far, unit in zip(found["vae"], found["vae rounding"]))
    assert found["moved"][0] > 1


@pytest.mark.parametrize("family", ["sd2_v", "sdxl", "cosmos", *FLOWS])
def test_a_splat_is_distilled_from_every_family(client, server, family):
    splats = ply_of(client, client.run(FamilyGraph(family).dream(seed=91)))
    assert len(splats) > 100 and all(x.isfinite().all() for x in vars(splats).values())
    log = server.log_tail().rsplit("got prompt", 1)[-1]
    assert ("pixel gradients are limited to 0.05" in log) == (family == "sdxl")
    assert ("guided by Flux Guidance" in log) == (family in ("flux", "flux2"))
    assert ("learned to sample in few steps" in log) == (family == "flux_schnell")


@pytest.mark.parametrize("family", FLOWS)
def test_a_flows_schedule_is_finite_at_its_ends_and_has_the_hosts_shift(client, family):
    graph = FamilyGraph(family)
    found = found_by(client, graph, graph.ask("LucidTestEuler", cfg=1.0, steps=10))
    shift = SHIFT[family]
    assert found["sigmas"] == pytest.approx(
        [shift * t / (1 - t) for t in (0.9 - 0.085 * i for i in range(11))], rel=1e-3
    )
    assert found["ends"] == pytest.approx([shift * 1e-3, shift * 1e3], rel=2e-3)


def test_the_flow_of_cosmos_has_no_shift_and_the_hosts_ends(client):
    graph = FamilyGraph("cosmos")
    found = found_by(client, graph, graph.ask("LucidTestEuler", cfg=1.0, steps=10))
    assert found["sigmas"] == pytest.approx(
        [t / (1 - t) for t in (0.9 - 0.085 * i for i in range(11))], rel=1e-3
    )
    assert found["ends"] == pytest.approx([0.002, 80.0])


def test_lcm_is_asked_at_the_noise_levels_it_knows(client, server):
    """Through the host's Model Sampling Discrete: z0 by its boundary condition, sigma of its table of 50."""
    graph = FamilyGraph("sd15")
    graph.patched("ModelSamplingDiscrete", sampling="lcm", zsnr=False)
    found = found_by(client, graph, graph.ask("LucidTestEuler", cfg=1.0, steps=10))
    assert found["after"][0] < ROUNDINGS * found["rounding"][0]
    levels = [0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999 for i in range(1000)]
    abar = 1.0
    sigmas = [((1 - (abar := abar * (1 - beta**2))) / abar) ** 0.5 for beta in levels]
    assert all(min(abs(sigma / known - 1) for known in sigmas[19::20]) < 1e-4 for sigma in found["sigmas"])
    ply_of(client, client.run(graph.dream(seed=92)))
    assert "sampled as LCM: evaluated only at its 50 noise levels" in server.log_tail()


@pytest.mark.parametrize(
    "family, name",
    [
        ("sd15_inpaint", "model SD15 needs an image"),
        ("sd15_edit", "model SD15_instructpix2pix needs an image"),
        ("flux_fill", "model FluxInpaint needs an image"),
        ("qwen_layered", "model QwenImage makes layers"),
        ("wan", "model WAN21_T2V does not make images"),
    ],
)
def test_a_family_that_cannot_serve_is_refused_by_name(client, family, name):
    with fails("LucidISM", "BadInput", name):
        client.run(FamilyGraph(family).dream())


def test_an_edit_model_that_is_given_its_image_guides(client):
    graph = FamilyGraph("sd15_edit")
    given = graph.add(
        "InstructPixToPixConditioning",
        positive=graph.text("make it red"),
        negative=graph.text("blurry"),
        vae=graph.vae,
        pixels=[graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0x808080), 0],
    )
    prompt = graph.prompt([given, 0], [given, 1])
    splats = ply_of(client, client.run(graph.dream(prompt, seed=93)))
    assert len(splats) > 100 and all(x.isfinite().all() for x in vars(splats).values())


def test_what_is_told_by_name_has_its_name_in_the_host(host_path):
    """Names that the host no longer has would let a model pass that cannot serve."""
    source = Path(__file__).parents[2] / "nodes" / "host" / "families.py"
    told = {
        part.targets[0].id: [name.value for name in getattr(part.value, "keys", None) or part.value.elts]
        for part in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(part, ast.Assign) and part.targets[0].id in ("ONE_FRAME", "NOT_FOR_VIEWS")
    }
    models = ast.parse((host_path / "comfy" / "supported_models.py").read_text(encoding="utf-8")).body
    known = {part.name for part in models if isinstance(part, ast.ClassDef)}
    assert len(told) == 2 and {name for names in told.values() for name in names} - known <= NEWER


@pytest.mark.parametrize(
    "family, change, name, words",
    [
        ("sdxl", "text", "conditioning front", ["text of width 768", "KOALA_700M", "of 2048"]),
        ("krea2", "text", "conditioning front", ["text of width 768", "Krea2", "of 960"]),
        ("anima", "text", "conditioning front", ["text of width 768", "Anima", "of 1024"]),
        ("qwen_image", "wide text", "conditioning front", ["text of width 1000", "QwenImage", "of 768"]),
        ("cosmos", "wide text", "conditioning front", ["text of width 1000", "CosmosT2IPredict2", "of 768"]),
        ("sd3", "demo_vae", "vae", ["of 4 channels", "SD3 needs 16"]),
        ("sd3", "wan_vae", "vae", ["of 3 dimensions", "SD3 needs 2"]),
        ("qwen_image", "taehv", "vae", ["of HunyuanVideo", "QwenImage needs those of Wan21"]),
        ("qwen_image", "taesd_16_channels", "vae", ["of 2 dimensions", "QwenImage needs 3"]),
        ("sd2", "sampling", "model", ["SD20 turns one image into another"]),
        ("sdxl", "pooled", "conditioning front", ["lacks pooled_output", "KOALA_700M"]),
    ],
)
def test_parts_of_different_families_are_refused_with_both_sides(client, family, change, name, words):
    graph = FamilyGraph(family)
    prompt = None
    if change == "text":
        prompt = graph.prompt([graph.add("CLIPTextEncode", clip=graph.clip, text="a mug"), 0])
    elif change == "wide text":
        prompt = graph.prompt(
            [graph.add("LucidTestWiden", conditioning=graph.text("a mug"), width=1000, pooled=768), 0]
        )
    elif change == "pooled":
        prompt = graph.prompt(
            [graph.add("LucidTestSpoilt", conditioning=graph.text("a mug"), change="no pooled text"), 0]
        )
    elif change == "demo_vae":
        graph.vae = [graph.clip[0], 2]
    elif change in VAES:
        graph.use_vae(change)
    else:
        graph.patched("ModelSamplingDiscrete", sampling="img_to_img", zsnr=False)
    with fails("LucidISM", "BadInput", f"{name} ", *words):
        client.run(graph.dream(prompt))
