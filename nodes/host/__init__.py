"""The only folder that touches the host's internals: models and conditionings, VAE, splats and cameras, page and files."""

from .conds import require_text_of, zeroed
from .control import carries_control, require_control
from .families import log_needs, require_image_model
from .models import encode_text, require_clip, with_prior
from .page import Progress, check_interrupt, name_of, output_file, output_path, output_stamp, show_text
from .splats import camera_of, from_splats, one_splat, to_splats
from .teachers import depends_on, with_teacher

__all__ = [
    "Progress", "camera_of", "carries_control", "check_interrupt", "depends_on", "encode_text", "from_splats", "log_needs",
    "name_of", "one_splat", "output_file", "output_path", "output_stamp", "require_clip", "require_control",
    "require_image_model", "require_text_of", "show_text", "to_splats", "with_prior", "with_teacher", "zeroed",
]  # fmt: skip
