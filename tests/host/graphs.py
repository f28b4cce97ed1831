"""Small graphs in the host's API form, and what comes out of them."""

import itertools
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

from workflows.api.client import input_of

ROOT = Path(__file__).resolve().parents[2]


class Graph(dict):
    """`graph.add("Class", name=value)` returns the node's id; link an output as [id, slot]."""

    def add(self, class_type, **inputs):
        name = str(len(self) + 1)
        self[name] = {"class_type": class_type, "inputs": inputs}
        return name

    def save_image(self, link, prefix="test/image"):
        return self.add("SaveImage", images=link, filename_prefix=prefix)


def workflow(**changes):
    """workflows/api/text_to_splat.json with inputs changed by class: LucidDream={"steps": 3}.

    Tiny, and ISM alone, unless told otherwise.
    """
    graph = json.loads((ROOT / "workflows/api/text_to_splat.json").read_text(encoding="utf-8"))
    small = {
        "LucidPointCloud": {"count": 300},
        "LucidISM": {"surface_share": 0.0},
        "LucidDream": {"steps": 2, "views": 1, "resolution": 64},
        "LucidSave": {"turntable_frames": 0, "filename_prefix": "test/splat"},
    }
    for node in graph.values():
        for of_class in (small, changes):
            inputs = of_class.get(node["class_type"], {})
            node["inputs"].update({input_of(node, name): value for name, value in inputs.items()})
    return graph


def node_of(graph, class_type):
    return next(name for name, node in graph.items() if node["class_type"] == class_type)


def files(entry, key):
    """The entries of the web page's files of one kind ("3d", "images") over all nodes."""
    return list(itertools.chain.from_iterable(output.get(key, []) for output in entry["outputs"].values()))


def image(client, entry, node):
    """(B, H, W, 3) float in [0, 1]: what a SaveImage node wrote."""
    frames = []
    for file in entry["outputs"][node]["images"]:
        data = np.frombuffer(client.view(file), np.uint8)
        frames.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] / 255)
    return np.stack(frames)


def ply_of(client, entry):
    """The first saved .ply as lucid_core Splats."""
    from lucid_core import ply

    (file, *_) = files(entry, "3d")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file["filename"]
        path.write_bytes(client.view(file))
        return ply.read(path)
