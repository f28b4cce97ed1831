"""What `lucid_core` offers under its own name, and the example in docs/python.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lucid_core
from lucid_core.io import ply

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", lucid_core.__all__)
def test_every_name_is_there(name):
    assert getattr(lucid_core, name) is not None and name in dir(lucid_core)


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="Dreams"):
        _ = lucid_core.Dreams


def test_the_import_alone_loads_nothing():
    code = "import sys; import lucid_core; print(sorted({'torch', 'numpy', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_in_the_docs_runs(tmp_path):
    (example,) = re.findall(
        r"```python\n(.+?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "example.py"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("step 20: ")
    assert len(ply.read(tmp_path / "mushroom.ply")) > 1000
