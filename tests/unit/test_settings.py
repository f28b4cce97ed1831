"""Settings: bounds, and replacement by name in nested dataclasses."""

import pytest

from lucid_core.optimize.config import PRESETS, DreamConfig, Task
from lucid_core.optimize.densify import Densify
from lucid_core.settings import bounds_of, names_of, replace_settings


def test_a_setting_is_replaced_wherever_it_lies():
    config = replace_settings(
        DreamConfig(), steps=7, strength=0.5, lr_sh=(0.1, 0.2), densify=Densify(stop=0.5)
    )
    assert (config.budget.steps, config.budget.views, config.task) == (7, 4, Task(strength=0.5))
    assert config.optimizer.rates.lr_sh == (0.1, 0.2) and config.optimizer.densify.stop == 0.5
    assert replace_settings(config) == config
    assert replace_settings(PRESETS["cpu"], stop=0.8).optimizer.densify.start == 0.3


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="step"):
        replace_settings(DreamConfig(), step=7)


def test_no_two_settings_of_a_run_share_a_name():
    """Otherwise a replacement by name would be ambiguous, and so would the widgets of the nodes."""
    config = DreamConfig()
    groups = [config.budget, config.task, *vars(config.optimizer).values()]
    names = [name for group in groups for name in bounds_of(group)]
    assert len(names) == len(set(names)) and set(names) < names_of(config)
