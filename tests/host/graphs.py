"""Small graphs in the host's API form, and what comes out of them."""

import itertools
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

from lucid_core.guidance.baselines import METHODS
from lucid_core.settings import bounds_of
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
    from lucid_core.io import ply

    (file, *_) = files(entry, "3d")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file["filename"]
        path.write_bytes(client.view(file))
        return ply.read(path)


def summary_of(entry):
    (summary,) = (output["lucid"][0] for output in entry["outputs"].values() if "lucid" in output)
    return summary


def with_baseline(method, **settings):
    """The workflow with a rival of ISM in its place, at its defaults but for `settings`."""
    graph = workflow()
    defaults = METHODS[method]()
    node = graph[node_of(graph, "LucidISM")]
    links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
    values = {name: getattr(defaults, name) for name in bounds_of(defaults)} | settings
    node["class_type"] = "LucidBaseline"
    node["inputs"] = {
        **links,
        "method": method,
        **{f"method.{name}": value for name, value in values.items()},
    }
    return graph


def with_start(change, **changes):
    """The workflow that starts from LucidTestSplat's `change` of the points."""
    graph = workflow(**changes)
    points = [node_of(graph, "LucidPointCloud"), 0]
    graph["start"] = {"class_type": "LucidTestSplat", "inputs": {"splat": points, "change": change}}
    graph[node_of(graph, "LucidDream")]["inputs"]["splat"] = ["start", 0]
    return graph


def with_model(change, **changes):
    """The workflow with LucidTestModel's `change` of its model."""
    graph = workflow(**changes)
    loader = node_of(graph, "CheckpointLoaderSimple")
    graph["changed"] = {
        "class_type": "LucidTestModel",
        "inputs": {"model": [loader, 0], "vae": [loader, 2], "change": change},
    }
    graph[node_of(graph, "LucidISM")]["inputs"]["model"] = ["changed", 0]
    return graph


def with_selection(shape, x, extent, **changes):
    graph = workflow(**changes)
    place = {"x": x, "y": 0.0, "z": 0.0, "width": extent, "height": extent, "depth": extent}
    graph["selection"] = {"class_type": "LucidSelection", "inputs": {"shape": shape, **place}}
    graph[node_of(graph, "LucidDream")]["inputs"]["selection"] = ["selection", 0]
    return graph


def camera(graph, yaw, pitch=10.0, target_y=0.0):
    return graph.add(
        "CreateCameraInfo",
        target_x=0.0,
        target_y=target_y,
        target_z=0.0,
        roll=0.0,
        fov=35.0,
        zoom=1.0,
        camera_type="perspective",
        mode="orbit",
        **{"mode.yaw": yaw, "mode.pitch": pitch, "mode.distance": 4.0},
    )


def host_render(graph, splat, info):
    return graph.add(
        "RenderSplat",
        splat=splat,
        camera_info=info,
        width=192,
        height=160,
        frames=1,
        splat_scale=1.0,
        sharpen=1.0,
        headlight_shading=0.0,
        opacity_threshold=0.0,
        background="#000000",
        render_style="color",
    )


def our_render(graph, splat, **inputs):
    defaults = {"width": 192, "height": 160, "frames": 1, "azimuth": 0.0, "elevation": 10.0, "fov": 35.0}
    return graph.add("LucidRender", splat=splat, background="#000000", **{**defaults, **inputs})


def centroid(picture, rgb):
    """(x, y) of the pixels of one colour."""
    distance = np.abs(picture - np.array(rgb)).max(-1)
    y, x = np.nonzero(distance < 0.45)
    assert len(x) > 20, f"colour {rgb} is not seen"
    return np.array([x.mean(), y.mean()])


def only_start(graph, prefix="test/start"):
    name = node_of(graph, "LucidPointCloud")
    only = {name: graph[name]}
    only["save"] = {
        "class_type": "LucidSave",
        "inputs": {
            "splat": [name, 0],
            "filename_prefix": prefix,
            "turntable_frames": 0,
            "turntable_size": 64,
        },
    }
    return only
