"""What the pack needs of the host is named once, looked for before it is used, and said where it is
missing.
"""

import ast
import importlib.util
import itertools
import json
import subprocess
import sys

import pytest

from devtools.base import PACK

from .families import ROOT

SOURCES = [
    ROOT / "__init__.py",
    *(path for path in (ROOT / "nodes").rglob("*.py") if path.name != "compat.py"),
]
HOSTS = ("comfy", "comfy_api", "folder_paths")
WITHOUT = """
import asyncio, importlib, importlib.util, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from families import become_the_host
become_the_host(Path(sys.argv[1]).resolve())
module, _, name = sys.argv[4].rpartition(".")
if name == "latest":
    sys.modules["comfy_api.latest"] = None
else:
    delattr(importlib.import_module(module), name)
root = Path(sys.argv[3])
where = {"submodule_search_locations": [str(root)]}
spec = importlib.util.spec_from_file_location("lucid_ism", root / "__init__.py", **where)
pack = sys.modules["lucid_ism"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
try:
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
except RuntimeError as error:
    print(json.dumps({"kind": type(error).__name__, "missing": error.missing}))
    sys.exit()
missing = set()
for node in nodes:
    try:
        node.execute(seed=1)
    except RuntimeError as error:
        missing.add((type(error).__name__, *error.missing))
schemas = [node.define_schema() for node in nodes]
print(json.dumps({"ids": [schema.node_id for schema in schemas],
                  "run": [schema.is_output_node for schema in schemas],
                  "missing": sorted(missing),
                  "texts": sorted({schema.description for schema in schemas}),
                  "imported": "lucid_ism.nodes.dream" in sys.modules}))
"""


@pytest.fixture(scope="module")
def compat():
    spec = importlib.util.spec_from_file_location("compat", ROOT / "nodes" / "host" / "compat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def used_by(tree):
    """(module, name) of all that a source takes from the host's modules, which are imported whole or by
    name.
    """
    modules = {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and not node.level
            and node.module.split(".")[0] in HOSTS
        ):
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            modules |= {
                alias.asname or alias.name: alias.name
                for alias in node.names
                if alias.name.split(".")[0] in HOSTS
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            name = f"{modules[ast.unparse(node.value)]}.{node.attr}"
            if name not in modules.values() and not any(
                module.startswith(name + ".") for module in modules.values()
            ):
                yield modules[ast.unparse(node.value)], node.attr


def test_all_that_is_used_of_the_host_is_looked_for_and_nothing_else(compat):
    used = set(
        itertools.chain.from_iterable(
            used_by(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES
        )
    )
    assert used == {(module, name) for module, names in compat.PARTS.items() for name in names}


def test_the_stand_ins_have_the_names_of_the_nodes(compat, client):
    info = client.object_info().items()
    ours = {
        name: node["display_name"] for name, node in info if node["python_module"] == f"custom_nodes.{PACK}"
    }
    assert ours == compat.NODES


def without(host_path, part):
    command = [sys.executable, "-c", WITHOUT, host_path, ROOT / "tests" / "host", ROOT, part]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def test_without_a_part_every_node_loads_and_says_which(compat, host_path):
    found = without(host_path, "comfy.samplers.calc_cond_batch")
    assert sorted(found["ids"]) == sorted(compat.NODES) and all(found["run"]) and not found["imported"]
    assert found["missing"] == [["IncompatibleHost", "comfy.samplers.calc_cond_batch"]]
    (text,) = found["texts"]
    assert all(part in text for part in ("comfy.samplers.calc_cond_batch", compat.WORKS_WITH, "is 0."))


def test_a_host_without_such_nodes_is_told_why_the_pack_does_not_load(compat, host_path):
    found = without(host_path, "comfy_api.latest")
    assert found["kind"] == "IncompatibleHost"
    assert any(part.startswith("comfy_api.latest") for part in found["missing"])


NEWER = """
import importlib, importlib.util, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from families import become_the_host
become_the_host(Path(sys.argv[1]).resolve())
import comfy.model_sampling as sampling
root = Path(sys.argv[3])
where = {"submodule_search_locations": [str(root)]}
spec = importlib.util.spec_from_file_location("lucid_ism", root / "__init__.py", **where)
sys.modules["lucid_ism"] = importlib.util.module_from_spec(spec)
loras = importlib.import_module("lucid_ism.nodes.host.loras")
families = importlib.import_module("lucid_ism.nodes.host.families")
flow = type("Flow", (sampling.ModelSamplingDiscreteFlow, sampling.CONST), {})()
before = families.predicts_clean_images(flow)
sampling.IMG_TO_IMG_VELOCITY = type(flow)
stack = {"model": ["1", 0], "loras.0.lora_name": "a", "loras.0.strength": 0.5, "loras.0.enabled": True,
         "loras.1.lora_name": "off", "loras.1.strength": 1.0, "loras.1.enabled": False,
         "loras.2.lora_name": "weak", "loras.2.strength": 0.0, "loras.2.enabled": True,
         "loras.3.lora_name": ["5", 0]}
graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {}},
         "2": {"class_type": "LoadLoraModel", "inputs": stack},
         "3": {"class_type": "LucidISM", "inputs": {"model": ["2", 0]}}}
print(json.dumps({"flow": before, "of images": families.predicts_clean_images(flow),
                  "loras": list(loras._loras_before(graph, "3")),
                  "Trellis2": families.NOT_FOR_VIEWS["Trellis2"]}))
"""


def test_what_newer_hosts_have_is_known(host_path):
    """Written from their sources, with stand-ins: a flow from image to image, a stack of LoRAs, a family of
    shapes.
    """
    command = [sys.executable, "-c", NEWER, host_path, ROOT / "tests" / "host", ROOT]
    found = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    assert found["flow"] and not found["of images"]
    assert found["loras"] == ["a"]
    assert "no images" in found["Trellis2"]
