"""A LoRA of the host's own loader reaches our guidance: the demo's says in closed form what the model must
answer.
"""

import numpy as np

from demo import loras

from .graphs import Graph, node_of, workflow


def noise(client, text, with_lora):
    """What the model predicts for the front prompt of `text`."""
    full = workflow(LucidPrompt={"text": text})
    loader, prompt = node_of(full, "CheckpointLoaderSimple"), node_of(full, "LucidPrompt")
    graph = Graph({loader: full[loader], prompt: full[prompt]})
    model = [loader, 0]
    if with_lora:
        lora = {"lora_name": loras.file_of("yellow"), "strength_model": 1.0, "strength_clip": 1.0}
        graph["lora"] = {"class_type": "LoraLoader", "inputs": {"model": model, "clip": [loader, 1], **lora}}
        model, graph[prompt]["inputs"]["clip"] = ["lora", 0], ["lora", 1]
    probe = {"model": model, "vae": [loader, 2], "prompt": [prompt, 0], "sigmas": "3.0"}
    graph["probe"] = {"class_type": "LucidTestEps", "inputs": probe}
    return np.array(client.run(graph)["outputs"]["probe"]["3"])


def test_with_the_lora_red_is_yellow(client):
    yellow, red, painted = (
        noise(client, f"a {color} mushroom", lora)
        for color, lora in (("yellow", False), ("red", False), ("red", True))
    )
    assert np.abs(painted - yellow).mean() < 0.03 * np.abs(red - yellow).mean()
