"""Textured meshes as binary glTF 2.0 (.glb)."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadSetting
from ..optional import load
from ..starts.mesh import Mesh
from .video import to_uint8

FLOAT, UNSIGNED_INT, ARRAY, ELEMENTS = 5126, 5125, 34962, 34963
LINEAR, MIPMAPS, CLAMP = 9729, 9987, 33071


def encode(mesh: Mesh) -> bytes:
    """A mesh with UVs and texture, in glTF's frame (y up) -> the bytes of a .glb file.

    The texture is stored as PNG and its sRGB bytes are those of the mesh. The material is unlit
    (KHR_materials_unlit), since the texture holds the light already; programs that do not know the extension
    light it as rough and not metallic. Raises BadSetting without UVs or texture.
    """
    if mesh.uvs is None or mesh.texture is None:
        raise BadSetting("the mesh", "untextured", "textured")
    cv2 = load("cv2", "opencv-python-headless")
    vertices = mesh.vertices.numpy().astype("<f4")
    blobs = [
        vertices.tobytes(),
        mesh.uvs.numpy().astype("<f4").tobytes(),
        mesh.faces.numpy().astype("<u4").tobytes(),
        cv2.imencode(".png", np.ascontiguousarray(to_uint8(mesh.texture)[..., ::-1]))[1].tobytes(),
    ]
    content = _content(mesh, vertices, blobs)
    binary = b"".join(_pad(blob, b"\0") for blob in blobs)
    content["buffers"] = [{"byteLength": len(binary)}]
    text = _pad(json.dumps(content, separators=(",", ":")).encode(), b" ")
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
    return header + _chunk(b"JSON", text) + _chunk(b"BIN\0", binary)


def _content(mesh: Mesh, vertices: NDArray[np.float32], blobs: list[bytes]) -> dict[str, Any]:
    """The JSON part: vertices, UVs, faces and texture are the blobs 0 to 3."""
    offsets = np.cumsum([0, *(len(_pad(blob, b"\0")) for blob in blobs)]).tolist()
    views = [{"buffer": 0, "byteOffset": o, "byteLength": len(blob)} for o, blob in zip(offsets, blobs)]
    for view, target in zip(views, (ARRAY, ARRAY, ELEMENTS)):
        view["target"] = target
    low, high = vertices.min(0).tolist(), vertices.max(0).tolist()
    attributes = {"POSITION": 0, "TEXCOORD_0": 1}
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": 1.0}
    unlit: dict[str, Any] = {"KHR_materials_unlit": {}}
    return {
        "asset": {"version": "2.0", "generator": "Lucid ISM"},
        "extensionsUsed": list(unlit),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 2, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": surface, "doubleSided": True, "extensions": unlit}],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": LINEAR, "minFilter": MIPMAPS, "wrapS": CLAMP, "wrapT": CLAMP}],
        "images": [{"bufferView": 3, "mimeType": "image/png"}],
        "accessors": [
            _array(0, FLOAT, len(vertices), "VEC3", min=low, max=high),
            _array(1, FLOAT, len(vertices), "VEC2"),
            _array(2, UNSIGNED_INT, mesh.faces.numel(), "SCALAR"),
        ],
        "bufferViews": views,
    }


def _array(view: int, kind: int, count: int, shape: str, **more: Any) -> dict[str, Any]:
    return {"bufferView": view, "componentType": kind, "count": count, "type": shape, **more}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack("<I4s", len(data), kind) + data


def _pad(data: bytes, filler: bytes) -> bytes:
    """Data filled up to a multiple of 4 bytes, as glTF wants its chunks."""
    return data + filler * (-len(data) % 4)
