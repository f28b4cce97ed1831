"""Lucid Mix Guidance in the real host: two LoRAs on one checkpoint, two families, resuming."""

import pytest
from same import same

from demo import loras

from .failing import fails
from .family_graphs import FamilyGraph
from .graphs import node_of, ply_of, summary_of, workflow
from .test_cancel import loaded

SMALL = {"steps": 3, "views": 1, "resolution": 64}


def with_loras(seed, mode=None, share=0.5, only=None, second=1, **dream):
    """The workflow under the demo's LoRAs: both, mixed, or `only` one of them."""
    graph = workflow(LucidDream={**SMALL, "seed": seed, **dream})
    loader, ism = node_of(graph, "CheckpointLoaderSimple"), node_of(graph, "LucidISM")
    for i, color in enumerate((loras.COLORS[0], loras.COLORS[second])):
        lora = {"lora_name": loras.file_of(color), "strength_model": 1.0, "model": [loader, 0]}
        graph[f"lora{i}"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
        inputs = {**graph[ism]["inputs"], "model": [f"lora{i}", 0]}
        graph[f"ism{i}"] = {"class_type": "LucidISM", "inputs": inputs}
    mixed = {"first": ["ism0", 0], "second": ["ism1", 0], "mode": mode, "share": share}
    graph["mix"] = {"class_type": "LucidMix", "inputs": mixed}
    graph[node_of(graph, "LucidDream")]["inputs"]["guidance"] = ["mix" if only is None else f"ism{only}", 0]
    return graph


def test_each_of_two_loras_on_one_checkpoint_is_asked_as_if_it_were_alone(client):
    """They share the checkpoint's weights: the first one's must be back when it is asked after the second was
    loaded.
    """
    alone = [ply_of(client, client.run(with_loras(111, only=i))) for i in (0, 1)]
    assert not same(*alone)
    for share, i in ((0.0, 0), (1.0, 1)):
        assert same(ply_of(client, client.run(with_loras(111, "switch", share))), alone[i])


@pytest.mark.parametrize("mode", ["switch", "alternate", "add"])
def test_two_loras_mix_and_a_mixed_run_is_resumed(client, mode):
    whole = client.run(with_loras(112, mode))
    summary, held = summary_of(whole), loaded(client)
    again = client.run(with_loras(112, mode, resume=summary["checkpoint"]))
    assert set(loaded(client)) <= set(held)  # the host may have let go of another test's
    assert same(ply_of(client, whole), ply_of(client, again))
    with fails("LucidDream", "OtherRun", "", "run: share was 0.5, is 0.25."):
        client.run(with_loras(112, mode, 0.25, resume=summary["checkpoint"]))
    with fails("LucidDream", "OtherRun", "", "run: second.model was "):
        client.run(with_loras(112, mode, second=0, resume=summary["checkpoint"]))


@pytest.mark.usefixtures("families")
def test_a_noise_model_and_a_flow_of_another_vae_are_added(client):
    """Latents of 4 and of 16 channels, a mix within a mix, a prompt each."""
    graph = FamilyGraph("flux")
    graph.dream(**SMALL, seed=113)
    ism = node_of(graph, "LucidISM")
    demo = FamilyGraph("demo")
    demo.dream(**SMALL, seed=113)
    moved = lambda value: [f"d{value[0]}", value[1]] if isinstance(value, list) else value
    for name, node in demo.items():
        inputs = {key: moved(value) for key, value in node["inputs"].items()}
        if node["class_type"] not in ("LucidDream", "LucidSave", "PreviewGaussianSplat"):
            graph[f"d{name}"] = {**node, "inputs": inputs}
    other = f"d{node_of(demo, 'LucidISM')}"
    inner = {"first": [ism, 0], "second": [other, 0], "mode": "add", "share": 0.3}
    graph["inner"] = {"class_type": "LucidMix", "inputs": inner}
    outer = {"first": ["inner", 0], "second": [other, 0], "mode": "alternate", "share": 0.5}
    graph["outer"] = {"class_type": "LucidMix", "inputs": outer}
    graph[node_of(graph, "LucidDream")]["inputs"]["guidance"] = ["outer", 0]
    entry = client.run(graph)
    assert len(ply_of(client, entry)) > 100
    assert all(x.isfinite().all() for x in vars(ply_of(client, entry)).values())


def test_a_bad_share_is_refused(client):
    with fails("LucidMix", "value_bigger_than_max", "share"):
        client.run(with_loras(114, "add", 1.5))
