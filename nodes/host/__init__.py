"""The only folder that touches the host's internals: models, conditionings and VAE, splats, starts, page and files."""

from .compat import missing_parts

if not missing_parts():  # else nothing of the host's internals is touched
    from .conds import require_text_of, zeroed
    from .control import carries_control, require_control
    from .families import log_needs, require_image_model, require_invertible
    from .loras import require_loras
    from .models import encode_text, require_clip, with_prior
    from .page import (
        Progress,
        check_interrupt,
        delete_old,
        name_of,
        node_of_page,
        output_file,
        output_path,
        output_stamp,
        show_text,
    )
    from .splats import camera_of, from_splats, one_splat, to_splats
    from .starts import (
        camera_info_of,
        half_is_faster,
        input_exists,
        input_file,
        input_stamp,
        on_device,
        point_files,
        shap_e_folder,
        shap_e_models,
        to_mesh,
    )  # fmt: skip
    from .teachers import depends_on, held_by_patches, with_teacher

__all__ = [
    "Progress",
    "camera_info_of",
    "camera_of",
    "carries_control",
    "check_interrupt",
    "delete_old",
    "depends_on",
    "encode_text",
    "from_splats",
    "half_is_faster",
    "held_by_patches",
    "input_exists",
    "input_file",
    "input_stamp",
    "log_needs",
    "missing_parts",
    "name_of",
    "node_of_page",
    "on_device",
    "one_splat",
    "output_file",
    "output_path",
    "output_stamp",
    "point_files",
    "require_clip",
    "require_control",
    "require_image_model",
    "require_invertible",
    "require_loras",
    "require_text_of",
    "shap_e_folder",
    "shap_e_models",
    "show_text",
    "to_mesh",
    "to_splats",
    "with_prior",
    "with_teacher",
    "zeroed",
]  # fmt: skip
