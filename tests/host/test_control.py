"""ControlNets while distilling: the host's own objects, with a hint for every view."""

import pytest
from rounding import ROUNDINGS
from same import same

from devtools.base import PRIOR

from . import controlnets
from .failing import fails
from .families import file_of
from .family_graphs import BUILT, OTHER_VAES, FamilyGraph
from .graphs import Graph, node_of, ply_of, workflow

EFFECT, SWAPPED = 1e-2, 1e-3  # what a control, or two hints that change places, must at least do to z0


@pytest.fixture(scope="module", autouse=True)
def nets(base, client):
    controlnets.write(base / "models" / "checkpoints" / PRIOR, base / "models" / "controlnet")


def load(graph, name):
    return [graph.add("ControlNetLoader", control_net_name=f"test_{name}.safetensors"), 0]


def controlled(graph, prompt, net, hint="depth", strength=0.8, start=0.0, end=1.0, **more):
    net = {} if net is None else {"control_net": net}
    return [
        graph.add(
            "LucidControlNet",
            prompt=prompt,
            hint=hint,
            strength=strength,
            start_percent=start,
            end_percent=end,
            **net,
            **more,
        ),
        0,
    ]


def prepared(**changes):
    """The workflow as a Graph, with links to its model, VAE and prompt."""
    graph = Graph(workflow(**changes))
    loader = node_of(graph, "CheckpointLoaderSimple")
    return graph, [loader, 0], [loader, 2], [node_of(graph, "LucidPrompt"), 0]


def answers(client, name, chained=None, applied=None, **settings):
    """What LucidTestControl finds about the ControlNet `name`, and a second one `chained` to it."""
    whole, model, vae, plain = prepared()
    graph = Graph({key: whole[key] for key in (model[0], plain[0])})
    nets = [load(graph, each) for each in (name, chained) if each]
    return asked(client, graph, (model, vae, plain), nets, applied, **settings)


def asked(client, graph, of, nets, applied=None, **settings):
    """`of` links to a model, its VAE and a prompt; the first of `nets` may be put on that by the host's Apply
    ControlNet.
    """
    settings = {"strength": 0.8, "start": 0.0, "end": 1.0} | settings
    (model, vae, plain), prompt = of, of[2]
    for net, hint in zip(nets, ("depth", "canny")):
        if applied and net is nets[0]:
            node = graph.add("LucidTestApplied", prompt=plain, net=net, how=applied, vae=vae, **settings)
            prompt = controlled(graph, [node, 0], None)
        else:
            prompt = controlled(graph, prompt, net, hint, **settings)
    nets = dict(zip(("net", "second"), nets))
    test = graph.add(
        "LucidTestControl", model=model, vae=vae, plain=plain, controlled=prompt, **nets, **settings
    )
    return client.run(graph)["outputs"][test]


def bound_of(found):
    return ROUNDINGS * found["rounding"][0]


def require_like_the_host(found):
    for name in ("y", "negative", "other batches", "parts", "inverse"):
        assert max(found[name]) < bound_of(found), name


@pytest.mark.parametrize("name, chained", [("lora", None), ("plain", "other")])
def test_each_view_is_asked_about_as_by_the_hosts_own_nodes_and_sampler(client, name, chained):
    """Two views with a hint each, in batches of every make, in parts, through a ControlLoRA and through a
    chain.
    """
    found = answers(client, name, chained, strength=0.6, start=0.1, end=0.9)
    require_like_the_host(found)
    assert found["effect"][0] > EFFECT and found["swapped"][0] > SWAPPED
    assert found["hints"] == (["depth", "canny"] if chained else ["depth"])


def test_out_of_its_range_a_control_changes_nothing(client):
    found = answers(client, "plain", start=0.9)
    require_like_the_host(found)
    assert found["effect"][0] < bound_of(found)


@pytest.mark.parametrize("how, chained", [("old", None), ("advanced", "other")])
def test_controls_of_the_hosts_apply_nodes_keep_their_strength_and_get_our_hint(client, how, chained):
    """Also where one of ours is chained to them."""
    found = answers(client, "plain", chained, applied=how, strength=0.6)
    require_like_the_host(found)
    assert found["effect"][0] > EFFECT


def test_adapters_give_every_batch_its_own_features(client):
    found = client.run({"1": {"class_type": "LucidTestAdapter", "inputs": {}}})["outputs"]["1"]
    assert max(found["differences"]) < bound_of(found) < 1e-3 * found["size"][0]


def dreamt(client, *controls, **changes):
    """The splat of three steps of Lucid Dream under chained controls, each the settings of one; with the
    run's outputs.
    """
    graph, *_, prompt = prepared(LucidDream={"steps": 3, "seed": 4, **changes})
    cloud = [node_of(graph, "LucidPointCloud"), 0]
    for settings in controls:
        settings = {"name": "plain"} | settings
        if settings.pop("guided", False):
            settings["guide"] = cloud
        prompt = controlled(graph, prompt, load(graph, settings.pop("name")), **settings)
    graph[node_of(graph, "LucidISM")]["inputs"]["prompt"] = prompt
    entry = client.run(graph)
    return ply_of(client, entry), entry


def test_lucid_dream_with_controls(client):
    """Hints of the splat and of a guide end in a splat of their own; strength 0 and an empty range in that of
    no control.
    """
    none, _ = dreamt(client)
    assert same(none, dreamt(client, {"strength": 0.0})[0])
    assert same(none, dreamt(client, {"start": 0.0, "end": 0.0})[0])
    own, guided = (
        dreamt(client, *run)[0]
        for run in ([{"hint": "normal"}], [{"guided": True}, {"name": "other", "hint": "canny"}])
    )
    for end in (own, guided):
        assert end.means.isfinite().all() and not same(end, none)
    assert not same(own, guided)


def test_a_checkpoint_of_another_control_is_refused(client):
    """The weights, the settings and the guide count."""
    end, entry = dreamt(client, {})
    (summary,) = (output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)
    for other in ([{"name": "other"}], [{"strength": 0.7}], [{"guided": True}], []):
        with fails("LucidDream", "OtherRun", "", "controls was"):
            dreamt(client, *other, resume=summary["checkpoint"])
    assert same(end, dreamt(client, {}, resume=summary["checkpoint"])[0])


def test_a_controlnet_of_another_family_is_refused_before_the_first_step(client):
    with fails("LucidDream", "BadInput", "control_net ", "model SD15", "input_blocks", "1024"):
        dreamt(client, {"name": "sd2"})


@pytest.mark.parametrize(
    "change, kind, name",
    [
        ({"start": 0.6, "end": 0.5}, "BadSetting", "start_percent is 0.6"),
        ({"strength": -1.0}, "value_smaller_than_min", "strength"),
        ({"hint": "openpose"}, "value_not_in_list", "hint"),
    ],
)
def test_bad_values_are_refused(client, change, kind, name):
    with fails("LucidControlNet", kind, name):
        dreamt(client, change)


def refused(client, make, problem):
    """`make(graph, prompt, net)` gives the prompt that Lucid ISM gets; the run must fail for the `problem` of
    control_net.
    """
    graph, *_, prompt = prepared()
    graph[node_of(graph, "LucidISM")]["inputs"]["prompt"] = make(graph, prompt, load(graph, "plain"))
    with fails("LucidControlNet", "BadInput", "control_net ", problem):
        client.run(graph)


def test_what_cannot_be_controlled_is_refused(client):
    inpaints = lambda graph, prompt, net: controlled(
        graph, prompt, [graph.add("LucidTestInpaints", net=net), 0]
    )
    refused(client, inpaints, "needs a mask")
    missing = lambda graph, prompt, net: controlled(graph, prompt, None)
    refused(
        client,
        missing,
        "no conditioning of the prompt has a ControlNet",
    )
    settings = {"strength": 1.0, "start": 0.0, "end": 1.0}
    applied = lambda graph, prompt, net, how: [
        graph.add("LucidTestApplied", prompt=prompt, net=net, how=how, **settings),
        0,
    ]
    twice = lambda graph, prompt, net: controlled(
        graph, controlled(graph, applied(graph, prompt, net, "old"), None), None
    )
    refused(client, twice, "an earlier Lucid ControlNet")


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("family", ["qwen_image", "flux"])
def test_hints_that_a_video_vae_encodes_are_one_for_each_view(client, family):
    """The host would take those of a batch for the frames of one video, and all views would see the first
    one's.
    """
    graph = FamilyGraph(family)
    graph.use_vae("wan_vae")
    found = client.run(
        graph
        | {"hints": {"class_type": "LucidTestHints", "inputs": {"model": graph.model, "vae": graph.vae}}}
    )
    found = found["outputs"]["hints"]
    assert max(found["taken"] + found["chained"]) < bound_of(found)
    if family == "qwen_image":
        assert "refused" not in found
    else:
        (refused,) = found["refused"]
        assert refused["name"] == "control_net" and {"Wan21,", "Flux;"} <= set(refused["problem"].split())


class DitGraph(FamilyGraph):
    """That of a family, and small ControlNets."""

    def __init__(self, family):
        super().__init__(family)
        if family == "sd35":
            self.use_vae(OTHER_VAES["sd3"])

    def text(self, words):
        link = super().text(words)
        if self.family != "sd35":
            return link
        return [self.add("LucidTestWiden", conditioning=link, width=768, pooled=controlnets.SD35_POOLED), 0]

    def net(self, kind, union_type=None):
        """Of the family whose name is the first part of `kind`."""
        family = {"qwen": "qwen_image"}.get(kind.split("_")[0], kind.split("_")[0])
        if family in BUILT:
            model = self.add("LucidTestBuilt", family=family)
        else:
            model = self.add("UNETLoader", unet_name=file_of(family), weight_dtype="default")
        link = [self.add("LucidTestNet", model=[model, 0], kind=kind), 0]
        return (
            [self.add("SetUnionControlNetType", control_net=link, type=union_type), 0] if union_type else link
        )


@pytest.fixture(scope="module")
def dits(families):
    controlnets.write_sd35(families)


# ControlNets that encode their hint by the VAE, and Flux's first ones that do not; Chroma takes Flux's
DITS = [
    ("sd3", "sd3"),
    ("sd35", "sd35"),
    ("flux_xlabs", "flux"),
    ("flux_mistoline", "flux"),
    ("flux_union", "flux"),
    ("flux_union", "chroma"),
    ("qwen", "qwen_image"),
    ("qwen_fun", "qwen_image"),
]


@pytest.mark.usefixtures("dits")
@pytest.mark.parametrize("kind, family", DITS)
def test_a_dit_is_asked_about_each_view_as_by_the_hosts_own_nodes_and_sampler(client, kind, family):
    graph = DitGraph(family)
    found = asked(
        client,
        graph,
        (graph.model, graph.vae, graph.prompt()),
        [graph.net(kind)],
        strength=0.6,
        start=0.1,
        end=0.9,
    )
    require_like_the_host(found)
    assert found["effect"][0] > EFFECT and found["swapped"][0] > SWAPPED


@pytest.mark.usefixtures("dits")
@pytest.mark.parametrize(
    "family, kinds, applied",
    [
        ("flux", ["flux_union", "flux_xlabs"], None),
        ("sd3", ["sd3", "sd3"], "advanced"),
        ("qwen_image", ["qwen"], "advanced"),
    ],
)
def test_controls_of_dits_are_chained_and_taken_over(client, family, kinds, applied):
    graph = DitGraph(family)
    nets = [graph.net(kind, "depth" if kind == "flux_union" else None) for kind in kinds]
    found = asked(client, graph, (graph.model, graph.vae, graph.prompt()), nets, applied, strength=0.6)
    require_like_the_host(found)
    assert found["effect"][0] > EFFECT and found["swapped"][0] > SWAPPED


@pytest.mark.usefixtures("dits")
@pytest.mark.parametrize("kind, family", [("sd3", "sd3"), ("flux_union", "flux"), ("qwen", "qwen_image")])
def test_a_control_of_a_dit_changes_nothing_out_of_its_range_and_a_splat_within(client, kind, family):
    graph = DitGraph(family)
    found = asked(client, graph, (graph.model, graph.vae, graph.prompt()), [graph.net(kind)], start=0.9)
    require_like_the_host(found)
    assert found["effect"][0] < bound_of(found)
    ends = []
    for with_net in (False, True):
        graph = DitGraph(family)
        prompt = graph.prompt()
        prompt = controlled(graph, prompt, graph.net(kind)) if with_net else prompt
        ends.append(ply_of(client, client.run(graph.dream(prompt, seed=5))))
    assert all(values.isfinite().all() for values in vars(ends[1]).values()) and not same(*ends)


@pytest.mark.usefixtures("dits")
def test_a_run_under_a_control_that_borrows_from_the_model_resumes(client):
    """That of SD 3.5 is given a part of the model's weights when a run begins: its hash is the same before
    and after.
    """

    def dreamt(**changes):
        graph = DitGraph("sd35")
        prompt = graph.prompt()
        entry = client.run(graph.dream(controlled(graph, prompt, graph.net("sd35")), seed=5, **changes))
        (summary,) = (output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)
        return ply_of(client, entry), summary["checkpoint"]

    end, checkpoint = dreamt()
    assert same(end, dreamt(resume=checkpoint)[0])


@pytest.mark.usefixtures("dits")
@pytest.mark.parametrize(
    "kind, family, difference",
    [
        ("flux_xlabs", "sd3", ["model SD3:", "one for Flux"]),
        ("flux_union", "flux2", ["model Flux2:", "latents of Flux,", "those of Flux2"]),
        ("flux_xlabs", "flux2", ["model Flux2:", "latents of Flux,", "those of Flux2"]),
        ("flux_wide", "flux", ["model Flux:", "hidden width"]),
        ("sd3", "flux", ["model Flux:", "one for SD3"]),
        ("sd35", "demo", ["model SD15:", "one for SD3"]),
        ("qwen", "anima", ["model Anima:", "one for QwenImage"]),
        ("qwen_fun", "z_image", ["model ZImage:", "one for QwenImage"]),
    ],
)
def test_a_controlnet_of_another_dit_is_refused_before_the_first_step(client, kind, family, difference):
    graph = DitGraph(family)
    prompt = controlled(graph, graph.prompt(), graph.net(kind))
    with fails("LucidDream", "BadInput", "control_net ", *difference):
        client.run(graph.dream(prompt))


@pytest.mark.usefixtures("families")
def test_a_unets_controlnet_is_refused_by_a_dit(client):
    graph = DitGraph("flux")
    prompt = controlled(graph, graph.prompt(), load(graph, "plain"))
    with fails("LucidDream", "BadInput", "control_net ", "model Flux:", "input_blocks", "no counterpart"):
        client.run(graph.dream(prompt))


def patch(graph, kind, family):
    """A MODEL_PATCH of `kind`, which is for `family`."""
    model = graph.model if family == graph.family else [graph.add("LucidTestBuilt", family=family), 0]
    return [graph.add("LucidTestPatch", model=model, kind=kind), 0]


PATCHES = [("z_image", "z_image"), ("qwen", "qwen_image"), ("anima", "anima")]


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("kind, family", PATCHES)
def test_a_control_that_patches_the_model_is_asked_about_each_view_as_by_the_hosts_own_node(
    client, kind, family
):
    """From Load Model Patch to Lucid ControlNet. Alone, twice, with a prompt of two parts, and out of its
    range; the inversion goes without."""
    graph = FamilyGraph(family)
    of = graph.model, graph.vae, graph.prompt()
    net = patch(graph, kind, family)
    both = graph.add(
        "ConditioningCombine", conditioning_1=graph.text("a red mushroom"), conditioning_2=graph.text("a mug")
    )
    for prompt, nets in ((of[2], [net]), (of[2], [net, net]), (graph.prompt([both, 0]), [net])):
        found = asked(client, graph, (*of[:2], prompt), nets, strength=0.6)
        require_like_the_host(found)
        assert found["effect"][0] > EFFECT and found["swapped"][0] > SWAPPED
    found = asked(client, graph, of, [net], start=0.9)
    require_like_the_host(found)
    assert found["effect"][0] < bound_of(found)


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("kind, family", PATCHES)
def test_a_splat_is_distilled_under_a_control_that_patches_the_model(client, kind, family):
    def dreamt(strength, **changes):
        graph = FamilyGraph(family)
        prompt = graph.prompt()
        prompt = controlled(graph, prompt, patch(graph, kind, family), strength=strength)
        entry = client.run(graph.dream(prompt, seed=5, **changes))
        (summary,) = (output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)
        return ply_of(client, entry), summary["checkpoint"]

    (with_net, checkpoint), (without, _) = dreamt(0.8), dreamt(0.0)
    assert all(values.isfinite().all() for values in vars(with_net).values()) and not same(with_net, without)
    with fails("LucidDream", "OtherRun", "", "controls was"):
        dreamt(0.0, resume=checkpoint)
    assert same(with_net, dreamt(0.8, resume=checkpoint)[0])


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize(
    "kind, family, node, words",
    [
        ("z_image", "qwen_image", "LucidDream", ["model QwenImage:", "one for Lumina2"]),
        ("z_image_wide", "z_image", "LucidDream", ["model ZImage:", "width"]),
        ("style", "z_image", "LucidControlNet", ["kind Linear", "ZImage_Control"]),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(client, kind, family, node, words):
    graph = FamilyGraph(family)
    prompt = controlled(graph, graph.prompt(), patch(graph, kind, "z_image"))
    with fails(node, "BadInput", "control_net ", *words):
        client.run(graph.dream(prompt))


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("kind, family", PATCHES[:2])
def test_hints_stay_on_the_models_device(client, kind, family):
    graph = FamilyGraph(family)
    node = graph.add("LucidTestAtHome", model=graph.model, vae=graph.vae, net=patch(graph, kind, family))
    assert set(client.run(graph)["outputs"][node]["devices"]) == {"meta"}


@pytest.mark.usefixtures("families")
def test_a_patch_that_keeps_one_image_is_warned_of(client, server):
    graph = FamilyGraph("z_image")
    node = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0)
    net = patch(graph, "z_image", "z_image")
    graph.patched("ZImageFunControlnet", model_patch=net, vae=graph.vae, image=[node, 0], strength=1.0)
    client.run(graph.dream(seed=6))
    assert "a ControlNet patch that shows it the same image for every view" in server.log_tail()
