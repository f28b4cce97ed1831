"""The benchmark of generated views, at toy size."""

import pytest

from benchmarks import generated


def test_it_measures_what_was_generated_fitted_and_refined():
    row = generated.run("a blue ball", steps=2, views=1)
    assert all(5 < value < 40 for value in vars(row).values())


def test_an_unknown_object_is_refused():
    with pytest.raises(SystemExit, match="a teapot"):
        generated.main(False, ["a teapot"])
