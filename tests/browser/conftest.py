"""The host's own web page in a real Chromium. Screenshots of every test are in output/browser/."""

import os

import pytest

from devtools.chromium import HOW_TO, find_chromium

from .editor import Editor

FLAGS = [
    "--no-sandbox",  # root in a container has none
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL by the CPU for Preview Splat, and nothing else
    # what the page asks of the internet fails at once
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the templates open by themselves
    "Comfy.Workflow.ShowMissingModelsWarning": False,  # of the page's first workflow, which is not ours
    "Comfy.Minimap.Visible": False,  # it would lie over our nodes
    "Comfy.EnableTooltips": False,
    # ms; 32 by default, and a click that a busy machine makes longer is a drag
    "Comfy.Pointer.ClickBufferTime": 10_000,
}
TIMEOUT_MS = 60_000  # for what takes a second on a quiet machine


@pytest.fixture(scope="module")  # no wider: while it is there no other test can use asyncio
def chromium():
    program = find_chromium()
    if program is None:
        reason = f"no Chromium was found; {HOW_TO}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def editor(chromium, server, request, pytestconfig):
    """The page with an empty graph, as a user who has been here before finds it."""
    context = chromium.new_context(
        viewport={"width": 1600, "height": 1000}, base_url=f"http://{server.address}"
    )
    context.set_default_timeout(TIMEOUT_MS)
    assert context.request.post("/settings", data=SETTINGS).ok
    page = context.new_page()
    yield Editor.opened(page)
    folder = pytestconfig.rootpath / "output" / "browser"
    page.screenshot(path=folder / f"{request.node.name}.png")
    context.close()
