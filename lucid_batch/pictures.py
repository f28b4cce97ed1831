"""The pictures of a result: sheet.jpg, views of the video side by side, and thumb.jpg, for the gallery."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

VIEWS, SIZE, QUALITY = 8, 256, 85


def of(files: dict[str, bytes]) -> dict[str, bytes]:
    """The pictures that can be made of a result's video, or else of its first image; none if it has neither,
    or OpenCV is not there.
    """
    try:
        import cv2
    except ImportError:
        return {}
    if "video.mp4" in files:
        views = views_of(cv2, files["video.mp4"])
        if views:
            return {"sheet.jpg": jpeg(cv2, cv2.hconcat(views)), "thumb.jpg": jpeg(cv2, views[0])}
    for name in ("image.png", "image.jpg"):
        if name in files:
            import numpy as np

            image = cv2.imdecode(np.frombuffer(files[name], np.uint8), cv2.IMREAD_COLOR)
            if image is not None:
                return {"thumb.jpg": jpeg(cv2, shrink(cv2, image))}
    return {}


def views_of(cv2: Any, video: bytes) -> list[Any]:
    with tempfile.TemporaryDirectory(prefix="lucid-") as folder:
        path = Path(folder) / "video.mp4"
        path.write_bytes(video)
        reader = cv2.VideoCapture(str(path))
        frames = []
        while (read := reader.read())[0]:
            frames.append(shrink(cv2, read[1]))
        reader.release()
    return [frames[i * len(frames) // VIEWS] for i in range(min(VIEWS, len(frames)))]


def shrink(cv2: Any, image: Any) -> Any:
    scale = SIZE / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image


def jpeg(cv2: Any, image: Any) -> bytes:
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])
