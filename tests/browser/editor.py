"""The graph editor of the host's page: what a test does there by mouse and keyboard, and what it reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import TimeoutError

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

ROOT = Path(__file__).resolve().parents[2]
CLICKS, CLICK_MS = 10, 6_000  # tries, and the wait after each
RUN_MS = (
    600_000  # for a run of few steps: seconds on a quiet machine, minutes on a busy one that compiles first
)

# The page opens one by itself, and last of all moves the view to it.
FIRST_WORKFLOW = "window.app?.vueAppReady && app.canvas?.graph?.nodes.length && app.canvas.ds.offset[0]"
LISTEN = """() => {
  window.seen = [];
  for (const kind of ['b_preview', 'execution_success', 'execution_error', 'execution_interrupted'])
    app.api.addEventListener(kind, event => seen.push({kind, error: event.detail?.exception_message}));
}"""
FIND = "type => app.canvas.graph.nodes.find(node => node.type === type)"
SET = """changes => {
  for (const node of app.canvas.graph.nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name in (changes[node.type] ?? {})) widget.value = changes[node.type][widget.name];
}"""
LINKS = """() => [...app.canvas.graph.links.values()].map(link => {
  const [from, to] = [link.origin_id, link.target_id].map(id => app.canvas.graph.getNodeById(id));
  return [from.type, from.outputs[link.origin_slot].name, to.type, to.inputs[link.target_slot].name];
})"""
ON_PAGE = """([x, y]) => {
  const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y]);
  const box = app.canvas.canvas.getBoundingClientRect();
  return [left + box.left, top + box.top];
}"""


@dataclass
class Editor:
    """One open page. `kind` is a node's class; the graph has one node of it. Points are in page pixels."""

    page: Page

    @classmethod
    def opened(cls, page: Page) -> Editor:
        """The page with an empty graph."""
        page.goto("/")
        page.wait_for_function(f"() => {FIRST_WORKFLOW}")
        page.locator("#splash-loader").wait_for(state="hidden")  # it takes the clicks
        page.evaluate(LISTEN)
        page.evaluate("() => app.canvas.graph.clear()")
        return cls(page)

    # -- graphs

    def load(self, name: str) -> None:
        """Open a shipped workflow, in the page's form."""
        graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        self.page.evaluate("graph => app.loadGraphData(graph)", graph)

    def add(self, kind: str, x: float, y: float) -> None:
        self.page.evaluate(
            "([kind, ...at]) => { const node = LiteGraph.createNode(kind); node.pos = at; "
            "app.canvas.graph.add(node); }",
            [kind, x, y],
        )
        # Clicks find only what a frame has drawn.
        drawn = f"""kind => {{
          const node = ({FIND})(kind);
          const drawn = (node.widgets ?? []).every(widget => widget.y > 0);
          return app.canvas.visible_nodes.includes(node) && drawn;
        }}"""
        self.page.wait_for_function(drawn, arg=kind)

    def add_blueprint(self, name: str) -> None:
        """Add a subgraph blueprint as a user does: by double click and search."""
        search = self.page.get_by_role("combobox", name="Add a node...")
        self.click((800, 600), opens=search, double=True)
        search.fill(name)
        self.page.get_by_role("option").filter(has_text=name).first.wait_for()
        search.press("Enter")
        self.page.wait_for_function("() => app.canvas.graph.nodes.length === 1")

    def set(self, **changes: dict) -> None:
        """Widget values by class: LucidDream={"steps": 3}."""
        self.page.evaluate(SET, changes)

    def of(self, kind: str, expression: str):
        """A JavaScript expression of `node`, the node of the class `kind`."""
        return self.page.evaluate(f"type => {{ const node = ({FIND})(type); return {expression}; }}", kind)

    def value(self, kind: str, widget: str):
        return self.of(kind, f"node.widgets.find(widget => widget.name === {widget!r}).value")

    def text_on(self, kind: str) -> str:
        """What the server has written on a node."""
        return self.of(kind, "node.widgets.find(widget => widget.type === 'progressText')?.value ?? ''")

    def links(self) -> list[tuple[str, str, str, str]]:
        """Every link: the class and the output that it comes from, the class and the input that it goes
        to.
        """
        return [tuple(link) for link in self.page.evaluate(LINKS)]

    # -- mouse

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the graph is on the page."""
        return tuple(self.page.evaluate(ON_PAGE, [x, y]))

    def socket(self, kind: str, name: str) -> tuple[float, float]:
        """Where a node's input or output is on the page."""
        found = f"""(() => {{
          const place = slots => slots.findIndex(slot => slot.name === {name!r}), i = place(node.inputs);
          return [...(i >= 0 ? node.getInputPos(i) : node.getOutputPos(place(node.outputs)))];
        }})()"""
        return self.point(*self.of(kind, found))

    def widget(self, kind: str, name: str) -> tuple[float, float]:
        """Where the middle of a widget that the canvas draws is on the page."""
        widget = f"node.widgets.find(widget => widget.name === {name!r})"
        return self.point(*self.of(kind, f"[node.pos[0] + node.size[0] / 2, node.pos[1] + {widget}.y + 10]"))

    def click(self, at: tuple[float, float], opens: Locator, double: bool = False) -> None:
        """Click there as a user would: again, and slower than a double click, where a busy page has missed
        it.
        """
        for _ in range(CLICKS):
            self.page.mouse.click(*at, click_count=2 if double else 1)
            try:
                return opens.wait_for(timeout=CLICK_MS)
            except TimeoutError:
                continue
        raise AssertionError(f"{CLICKS} clicks at {at} did not open {opens}")

    def type_number(self, kind: str, name: str, text: str) -> None:
        box = self.page.locator(".graphdialog input")
        self.click(self.widget(kind, name), opens=box)
        box.fill(text)
        self.page.keyboard.press("Enter")

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=10)
        self.page.mouse.up()

    # -- runs

    def run_button(self) -> Locator:
        return self.page.get_by_test_id("queue-button")

    def wait_for(self, kind: str, timeout: float = RUN_MS) -> dict:
        """The first message of that kind from the server; AssertionError where the run fails instead."""
        self.page.wait_for_function(
            "kind => seen.some(event => event.kind === kind || event.kind === 'execution_error')",
            arg=kind,
            timeout=timeout,
        )
        events = self.page.evaluate("() => seen")
        failed = [event["error"] for event in events if event["kind"] == "execution_error"]
        assert not failed, failed
        return next(event for event in events if event["kind"] == kind)
