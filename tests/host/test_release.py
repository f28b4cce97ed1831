"""The archive for ComfyUI's registry: what is in it, what is refused, and that ComfyUI loads it."""

import zipfile
from dataclasses import replace

import pytest

from devtools import release


@pytest.fixture(scope="module")
def archive(tmp_path_factory, pytestconfig):
    return release.build(pytestconfig.rootpath, tmp_path_factory.mktemp("release"))


def test_the_archive_holds_the_pack_and_nothing_of_its_development(archive):
    names = zipfile.ZipFile(archive.path).namelist()
    assert {name.split("/")[0] for name in names if "/" in name} == {
        "lucid_batch",
        "lucid_core",
        "nodes",
        "subgraphs",
        "workflows",
    }
    assert {*release.NEEDED} <= {*names}


def test_a_fresh_comfyui_loads_it(archive, host_path):
    assert release.load(archive, host_path) == []


def test_what_is_forbidden_or_missing_is_named(archive, pytestconfig, tmp_path):
    bad = replace(archive, path=tmp_path / "bad.zip")
    with zipfile.ZipFile(bad.path, "w") as file:
        file.writestr("nodes/a.py", "model.eval()\nprior._eval(x)\n")
        file.writestr("nodes/b.py", "x = eval(text)\n")
    found = "\n".join(release.problems(bad, pytestconfig.rootpath))
    assert "nodes/b.py" in found and "nodes/a.py" not in found
    assert all(f"{name} is missing" in found for name in release.NEEDED)


def test_the_pack_itself_lacks_its_address_alone(archive, pytestconfig):
    found = [line for line in release.problems(archive, pytestconfig.rootpath) if "not committed" not in line]
    assert len(found) == 1 and "Repository" in found[0]
