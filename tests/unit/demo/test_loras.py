"""The demo's LoRAs: what they do to each word."""

import pytest
import torch
from safetensors.torch import load_file

from demo import captions, checkpoint, loras, unet
from demo.words import CONCEPTS
from devtools.base import LORAS


@pytest.mark.parametrize("color", loras.COLORS)
def test_red_gets_the_key_and_value_of_another_colour_and_no_other_word_changes(color):
    narrow = load_file(checkpoint.PRIOR)
    words = captions.encoded(narrow["words"])
    change = loras.recolored(narrow, "red", color)
    weights = unet.pad_state(
        {k.removeprefix("unet."): v.float() for k, v in narrow.items() if k.startswith("unet.")}
    )
    layers = {name.split(".lora_")[0] for name in change}
    assert len(layers) == 8  # keys and values of four transformers
    for layer in layers:
        weight = weights[f"{layer.removeprefix('diffusion_model.')}.weight"]
        up, down = (change[f"{layer}.lora_{part}.weight"] for part in ("up", "down"))
        before, after = words @ weight.T, words @ (weight + up @ down).T
        wanted = before.clone()
        wanted[CONCEPTS.index("red")] = before[CONCEPTS.index(color)]
        assert torch.allclose(after, wanted, atol=1e-3 * float(before.abs().max()))


def test_the_files_have_the_names_that_the_workflows_know(tmp_path):
    loras.write(tmp_path)
    assert (
        sorted(path.name for path in tmp_path.iterdir())
        == sorted(LORAS)
        == sorted(map(loras.file_of, loras.COLORS))
    )
