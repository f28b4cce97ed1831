"""Lucid Render beside the host's own renderer: frames, turntable, mask and depth."""

import json

import numpy as np
import pytest

from .graphs import Graph, camera, centroid, host_render, image, our_render


@pytest.fixture(scope="module")
def landmarks():
    """A grey box with red on its front, green on its left (+x) and white on top, made by the host's own splat
    nodes.
    """
    graph = Graph()
    box = {"shape": "box", "count": 1500, "seed": 0, "color_noise": 0.0, "opacity": 0.9}
    parts = [[graph.add("LucidPointCloud", size=1.0, color="#404040", **box), 0]]
    for color, (x, y, z) in {
        "#ff0000": (0, 0, -0.6),
        "#00ff00": (0.6, 0, 0),
        "#ffffff": (0, -0.6, 0),
    }.items():
        small = graph.add("LucidPointCloud", size=0.4, color=color, **box)
        moved = graph.add(
            "TransformSplat",
            splat=[small, 0],
            translate_x=x,
            translate_y=y,
            translate_z=z,
            rotate_x=0.0,
            rotate_y=0.0,
            rotate_z=0.0,
            scale_x=1.0,
            scale_y=1.0,
            scale_z=1.0,
        )
        parts.append([moved, 0])
    merged = graph.add("MergeSplat", **{f"splats.splat{i}": part for i, part in enumerate(parts)})
    file = graph.add("SplatToFile3D", splat=[merged, 0], format="ply")
    back = graph.add("File3DToSplat", model_3d=[file, 0])
    return graph, [back, 0]


@pytest.mark.parametrize("yaw, target_y", [(0.0, 0.0), (60.0, 0.0), (-30.0, 0.0), (180.0, 0.0), (60.0, 0.5)])
def test_our_renderer_sees_what_the_hosts_sees(client, landmarks, yaw, target_y):
    """The same splat, through the host's writer and reader, from the host's own camera node: the frames
    agree. The node Camera Angle of newer hosts turns about a point half a unit above the origin."""
    source, splat = landmarks
    graph = Graph(source)
    info = [camera(graph, yaw, target_y=target_y), 0]
    theirs = graph.save_image([host_render(graph, splat, info), 0])
    ours = graph.save_image([our_render(graph, splat, camera_info=info), 0])
    entry = client.run(graph)
    theirs, ours = image(client, entry, theirs)[0], image(client, entry, ours)[0]
    seen = lambda picture: picture.max(-1) > 0.1
    assert (seen(ours) & seen(theirs)).sum() / (seen(ours) | seen(theirs)).sum() > 0.85
    assert np.abs(ours - theirs).mean() < 0.05
    assert (
        np.abs(centroid(ours, (1, 1, 1)) - centroid(theirs, (1, 1, 1))).max() < 8
    )  # they blend in linear light


def test_front_is_at_the_front_and_up_is_up(client, landmarks):
    source, splat = landmarks
    graph = Graph(source)
    views = {
        azimuth: graph.save_image([our_render(graph, splat, azimuth=azimuth), 0]) for azimuth in (0.0, 90.0)
    }
    entry = client.run(graph)
    front, left = (image(client, entry, views[azimuth])[0] for azimuth in (0.0, 90.0))
    red, white, green = (centroid(front, rgb) for rgb in ((1, 0, 0), (1, 1, 1), (0, 1, 0)))
    assert abs(red[0] - 96) < 12 and white[1] < red[1] - 15 and green[0] > red[0] + 15
    assert (
        abs(centroid(left, (0, 1, 0))[0] - 96) < 12
    )  # azimuth 90 faces the side that azimuth 0 has at its right
    assert centroid(left, (1, 0, 0))[0] < 96 - 15


def test_turntable_mask_and_depth(client, landmarks):
    source, splat = landmarks
    graph = Graph(source)
    node = our_render(graph, splat, frames=4)
    pictures, depth = graph.save_image([node, 0]), graph.save_image([node, 2])
    mask = graph.save_image([graph.add("MaskToImage", mask=[node, 1]), 0])
    entry = client.run(graph)
    pictures, depth, mask = (image(client, entry, name) for name in (pictures, depth, mask))
    assert pictures.shape == depth.shape == mask.shape == (4, 160, 192, 3)
    centroid(pictures[0], (1, 0, 0))
    with pytest.raises(AssertionError):
        centroid(pictures[2], (1, 0, 0))  # from behind, the front is hidden
    assert mask[0, 80, 96].min() > 0.95 and mask[0, 2, 2].max() == 0 == depth[0, 2, 2].max()
    x, y = centroid(pictures[0], (1, 0, 0)).astype(int)
    assert depth[0, y, x, 0] > depth[0][mask[0].min(-1) > 0.9].mean()  # the red part is the nearest


def test_lucid_save_gives_a_camera_at_the_front_that_shows_the_whole_splat(client):
    graph = Graph()
    ball = {"shape": "ball", "count": 500, "size": 7.0, "color": "#ffffff", "seed": 0}
    cloud = [graph.add("LucidPointCloud", **ball, color_noise=0.0, opacity=0.9), 0]
    save = graph.add(
        "LucidSave", splat=cloud, filename_prefix="test/framed", turntable_frames=0, turntable_size=64
    )
    picture = graph.save_image([our_render(graph, cloud, camera_info=[save, 1], width=128, height=128), 0])
    text = graph.add("PreviewAny", source=[save, 1])
    entry = client.run(graph)
    seen = image(client, entry, picture)[0].max(-1) > 0.2
    assert seen.mean() > 0.25
    assert not (seen[[0, -1]].any() or seen[:, [0, -1]].any())
    position = json.loads(entry["outputs"][text]["text"][0])["position"]
    assert position["z"] > 2 * abs(position["x"]) and position["y"] > 0  # the viewer's axes: y up
