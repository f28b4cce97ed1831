"""The rooms keep apart, and nothing heavy loads before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from raising import raises

ROOT = Path(__file__).resolve().parents[2]
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "server",
    "execution",
    "nodes",
}


def imports(path):
    """(top-level module or "." for relative, line) of each import in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." if node.level else node.module.split(".")[0]), node.lineno


@pytest.mark.parametrize("path", sorted((ROOT / "lucid_core").rglob("*.py")), ids=lambda p: p.name)
def test_the_core_knows_neither_host_nor_nodes(path):
    assert not [(name, line) for name, line in imports(path) if name in HOST | {"lucid_core", "demo"}]


FLOORS = {  # of lucid_core: one imports from its own and from lower ones
    **dict.fromkeys(("errors", "splats", "cameras", "frames", "settings", "optional"), 0),
    **dict.fromkeys(("rasterize", "starts", "diffusion"), 1),
    **dict.fromkeys(("io", "conditioning", "bake", "field"), 2),
    **dict.fromkeys(("guidance", "score"), 3),
    "optimize": 4,
}


def floors_below(path):
    """(floor of lucid_core, line) of each relative import in one of its files."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            absolute = [*base, *(node.module.split(".") if node.module else [])]
            names = [absolute[1]] if len(absolute) > 1 else [alias.name for alias in node.names]
            yield from ((name, node.lineno) for name in names)


@pytest.mark.parametrize("path", sorted((ROOT / "lucid_core").rglob("*.py")), ids=lambda p: p.name)
def test_a_floor_of_the_core_stands_on_lower_ones(path):
    parts = path.relative_to(ROOT / "lucid_core").with_suffix("").parts
    if parts == ("__init__",):
        return
    own = FLOORS[parts[0]]
    assert not [(name, line) for name, line in floors_below(path) if FLOORS[name] > own]


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").rglob("*.py")), ids=lambda p: p.name)
def test_only_nodes_host_touches_the_hosts_internals(path):
    internal = HOST - {"comfy_api"}
    assert path.parent.name == "host" or not [
        (name, line) for name, line in imports(path) if name in internal
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "lucid_batch").rglob("*.py")), ids=lambda p: p.name)
def test_batches_know_neither_host_nor_pack(path):
    others = HOST | {"lucid_core", "demo", "devtools", "benchmarks", "lucid_batch"}
    assert not [(name, line) for name, line in imports(path) if name in others]


@pytest.mark.parametrize("folder", ["nodes", "lucid_core"])
def test_the_pack_knows_nothing_of_batches(folder):
    for path in [ROOT / "__init__.py", *(ROOT / folder).rglob("*.py")]:
        assert not {name for name, _ in imports(path)} & {"ray", "lucid_batch"}, path


def test_importing_the_core_loads_nothing_heavy():
    modules = [
        "cameras",
        "rasterize",
        "optimize.loop",
        "optimize.checkpoint",
        "guidance.ism",
        "guidance.baselines",
        "diffusion.diffusers_prior",
        "conditioning.view_prompts",
        "io.ply",
        "io.video",
        "io.point_files",
        "io.captures",
        "optimize.views",
        "io.glb",
        "bake.shade",
        "bake.solid",
        "bake.texture",
        "score.chart",
        "score.measures",
        "score.sheet",
        "score.views",
        "starts.points",
        "starts.shapes",
        "starts.mesh",
        "starts.depth",
        "starts.shap_e",
    ]
    code = f"""
import sys
sys.path.append({str(ROOT)!r})
import torch
before = set(sys.modules)
{chr(10).join(f"import lucid_core.{m}" for m in modules)}
heavy = ("gsplat", "numba", "safetensors", "diffusers", "transformers", "cv2", "plyfile", "scipy", "xatlas")
print([m for m in heavy if m in set(sys.modules) - before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    from lucid_core.errors import MissingPackage
    from lucid_core.optional import load

    monkeypatch.setitem(sys.modules, "plyfile", None)
    with raises(MissingPackage, package="plyfile"):
        load("plyfile", "plyfile")
