"""The demo's LoRA: what it does to each word, and that the wide file holds the same."""

import pytest
import torch
from safetensors.torch import load_file

from demo import captions, checkpoint, lora
from demo.words import COLORS, CONCEPTS


@pytest.fixture(scope="module")
def narrow():
    return load_file(checkpoint.PRIOR)


def test_every_colour_gets_the_key_and_value_of_yellow_and_no_other_word_changes(narrow):
    words = captions.encoded(narrow["words"])
    changes = lora.low_rank(narrow)
    assert len(changes) == 8  # keys and values of four transformers
    for name, (up, down) in changes.items():
        weight = narrow[f"unet.{name}"].float()
        before, after = words @ weight.T, words @ (weight + up @ down).T
        wanted = before.clone()
        wanted[[CONCEPTS.index(color) for color in COLORS]] = before[CONCEPTS.index("yellow")]
        assert torch.allclose(after, wanted, atol=1e-3 * float(before.abs().max()))


def test_the_file_holds_the_same_change_for_the_wide_checkpoint(narrow, tmp_path):
    file = load_file(lora.write(tmp_path / "loras" / "yellow.safetensors"))
    for name, (up, down) in lora.low_rank(narrow).items():
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        wide_up, wide_down = file[f"{key}.lora_up.weight"].float(), file[f"{key}.lora_down.weight"].float()
        assert float(file[f"{key}.alpha"]) == len(wide_down)
        change = wide_up @ wide_down
        assert not change[len(up) :].any()
        assert torch.allclose(change[: len(up)], up @ down, atol=3e-3 * float((up @ down).abs().max()))
