"""What the web page tells about our nodes: tooltips, search words, the help pages and their pictures, from
the real host.
"""

import re

import pytest

from devtools.base import PACK

from .graphs import ROOT

DOCS = ROOT / "nodes" / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PICTURE_BYTES = 60_000
PLAIN = {
    "clip",
    "height",
    "model",
    "seed",
    "splat",
    "text",
    "vae",
    "width",
}  # inputs that a page need not explain


@pytest.fixture(scope="module")
def nodes(client):
    """Node id -> its description; the pack's own, without the tests'."""
    found = {
        name: info
        for name, info in client.object_info().items()
        if info["python_module"] == f"custom_nodes.{PACK}"
    }
    assert found
    return found


def inputs_of(described):
    """(name, options) of every input, also of those that a choice of a dynamic combo brings along."""
    for kind in ("required", "optional"):
        for name, spec in described.get(kind, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            yield name, options
            if spec[0] == "COMFY_DYNAMICCOMBO_V3":
                for choice in options["options"]:
                    yield from inputs_of(choice["inputs"])


def test_every_node_can_be_found_and_says_what_it_is_for(nodes):
    for name, info in nodes.items():
        assert info["display_name"].startswith("Lucid "), name
        assert info["category"].startswith("3d/splat"), name  # where the host's own splat nodes are
        assert len(info["search_aliases"]) >= 3, name
        assert info["description"].endswith("."), name


def test_every_input_and_output_has_a_tooltip(nodes):
    for node, info in nodes.items():
        missing = [
            name for name, options in inputs_of(info["input"]) if not options.get("tooltip", "").strip()
        ]
        tooltips = info["output_tooltips"] or [None] * len(info["output"])
        missing += [name for name, tooltip in zip(info["output_name"], tooltips, strict=True) if not tooltip]
        assert not missing, f"{node} has no tooltip for {', '.join(missing)}"


def test_every_node_has_a_page_and_every_page_a_node(nodes):
    assert [page.stem for page in PAGES] == sorted(nodes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_every_input_and_no_other(page, nodes):
    """A name is `in backticks`. The first column of the page's tables holds inputs and outputs alone."""
    text, info = page.read_text(encoding="utf-8"), nodes[page.stem]
    known = {name for name, _ in inputs_of(info["input"])}
    unnamed = known - PLAIN - set(re.findall(r"`(\w+)`", text))
    assert not unnamed, f"{page.name} does not name {', '.join(sorted(unnamed))}"
    rows = re.findall(r"^\| *(`[^|]*) *\|", text, re.MULTILINE)
    strangers = (
        {name for row in rows for name in re.findall(r"`(\w+)`", row)} - known - set(info["output_name"])
    )
    assert not strangers, f"{page.name} names {', '.join(sorted(strangers))}, which the node does not have"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_host_serves_a_page_and_its_picture(page, client):
    """From where the web page asks for them: it puts the folder of the page before relative links of
    pictures.
    """
    fetch = lambda name: client.request("GET", f"/extensions/{PACK}/docs/{name}")
    assert fetch(page.name) == page.read_bytes()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert pictures, f"{page.name} has no picture"
    for name in pictures:
        assert "/" not in name and fetch(name) == (DOCS / name).read_bytes()
        assert (DOCS / name).stat().st_size < PICTURE_BYTES
