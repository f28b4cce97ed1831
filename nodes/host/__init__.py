"""The adapter to ComfyUI (the "host"). No other folder imports its internals: models, conditionings, VAE,
splats, meshes, cameras, files and the web page.
"""

from .compat import missing_parts

if not missing_parts():  # otherwise the imports below would fail
    from .conditioning import embed_images, encode_text, require_clip, zero_out
    from .controlnet import carries_control, require_control
    from .convert import (
        camera_info_of,
        camera_of,
        cameras_of,
        from_mesh,
        from_splats,
        one_splat,
        posed_images,
        to_mesh,
        to_splats,
    )
    from .families import (
        log_needs,
        require_image_model,
        require_invertible,
        require_levels,
        require_same_latents,
    )
    from .files import (
        delete_old,
        input_exists,
        input_file,
        input_stamp,
        name_of,
        output_file,
        output_path,
        output_stamp,
        point_files,
        shap_e_folder,
        shap_e_models,
        view_folder,
        view_folders,
        view_stamp,
    )
    from .fingerprint import depends_on, held_by_patches
    from .frontend import Progress, check_interrupt, node_of_page, show_text
    from .loras import require_loras
    from .memory import half_is_faster, memory_of, on_device
    from .sampling import with_prior, with_source
    from .zero123 import encode_picture, require_prompt_of

__all__ = [
    "Progress",
    "camera_info_of",
    "camera_of",
    "cameras_of",
    "carries_control",
    "check_interrupt",
    "delete_old",
    "depends_on",
    "embed_images",
    "encode_picture",
    "encode_text",
    "from_mesh",
    "from_splats",
    "half_is_faster",
    "held_by_patches",
    "input_exists",
    "input_file",
    "input_stamp",
    "log_needs",
    "memory_of",
    "missing_parts",
    "name_of",
    "node_of_page",
    "on_device",
    "one_splat",
    "output_file",
    "output_path",
    "output_stamp",
    "point_files",
    "posed_images",
    "require_clip",
    "require_control",
    "require_image_model",
    "require_invertible",
    "require_levels",
    "require_loras",
    "require_prompt_of",
    "require_same_latents",
    "shap_e_folder",
    "shap_e_models",
    "show_text",
    "to_mesh",
    "to_splats",
    "view_folder",
    "view_folders",
    "view_stamp",
    "with_prior",
    "with_source",
    "zero_out",
]
