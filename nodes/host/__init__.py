"""The only folder that touches the host's internals: models and conditionings, VAE, splats and cameras, page and files."""

from .models import encode_text, require_clip, require_image_model, with_prior
from .page import Progress, check_interrupt, name_of, output_file, output_path, output_stamp, show_text
from .splats import camera_of, from_splats, one_splat, to_splats
from .teachers import depends_on, with_teacher

__all__ = [
    "Progress", "camera_of", "check_interrupt", "depends_on", "encode_text", "from_splats", "name_of", "one_splat",
    "output_file", "output_path", "output_stamp", "require_clip", "require_image_model", "show_text", "to_splats",
    "with_prior", "with_teacher",
]  # fmt: skip
