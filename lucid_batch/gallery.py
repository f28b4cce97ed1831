"""index.html, a page of all results that opens from the disk, and index.sqlite, the same as a table."""

from __future__ import annotations

import contextlib
import html
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .store import Store, read_json, whole, write_whole
from .view import duration

COLUMNS = ("key", "state", "line", "label", "seconds", "run_seconds", "host", "pack", "reason")
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem;
  color: #1b1f24; background: #fff }
h1 { font-size: 1.3rem } h2 { font-size: 1.05rem; margin-top: 2.5rem }
p.counts { color: #57606a }
input { font: inherit; padding: .35rem .6rem; width: 18rem; border: 1px solid #c4c9d0;
  border-radius: 6px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem;
  margin-top: 1rem }
.card { border: 1px solid #d8dde3; border-radius: 8px; overflow: hidden; display: flex;
  flex-direction: column }
[hidden] { display: none !important }
.card .picture { aspect-ratio: 1; background: #f3f5f7; display: flex; align-items: center;
  justify-content: center; color: #8b949e }
.card img { width: 100%; height: 100%; object-fit: contain }
.card .text { padding: .6rem .8rem; overflow-wrap: anywhere }
.card .label { font-weight: 600 } .card .facts { color: #57606a; font-size: .85rem }
.card .links a { margin-right: .7rem; font-size: .85rem }
a { color: #0a58ca } table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #d8dde3; vertical-align: top;
  overflow-wrap: anywhere } td.reason { color: #a4262c; white-space: pre-wrap }
@media (prefers-color-scheme: dark) {
  body { background: #12161b; color: #e3e8ee } .card, td, th, input { border-color: #343b44 }
  input { background: #1a2027; color: inherit } .card .picture { background: #1a2027 }
  p.counts, .card .facts { color: #98a2ad } a { color: #79b2ff } td.reason { color: #ff9a96 } }
"""
SCRIPT = """
const box = document.querySelector("input");
box.addEventListener("input", () => {
  for (const one of document.querySelectorAll("[data-text]"))
    one.hidden = !one.dataset.text.includes(box.value.toLowerCase());
});
"""


class Gallery:
    """Writes the index of a store's folder; reports that were read are kept."""

    def __init__(self, store: Store) -> None:
        self.store, self.root = store, store.root
        self._reports: dict[str, dict[str, Any]] = {}

    def reports(self) -> list[dict[str, Any]]:
        """The reports of all results, in the order of the rows."""
        for folder in (self.root / "jobs").iterdir():
            if folder.name not in self._reports and (report := read_json(folder / "report.json")):
                self._reports[folder.name] = report
        return sorted(self._reports.values(), key=lambda one: (one["line"], one["key"]))

    def write(self) -> None:
        """Write both files atomically."""
        reports = self.reports()
        failures = sorted(self.store.failures().values(), key=lambda one: (one["line"], one["key"]))
        write_whole(self.root / "index.html", page(reports, failures))
        self._write_table(reports, failures)

    def _write_table(self, reports: list[dict[str, Any]], failures: list[dict[str, Any]]) -> None:
        """sqlite works on a file of this machine, which is then copied and renamed."""
        rows = [row_of("done", one) for one in reports] + [row_of("failed", one) for one in failures]
        with tempfile.TemporaryDirectory(prefix="lucid-") as folder:
            local = Path(folder) / "index.sqlite"
            with contextlib.closing(sqlite3.connect(local)) as table:
                table.execute(
                    f"CREATE TABLE jobs ({', '.join(COLUMNS)}, row, result, scores, PRIMARY KEY (key))"
                )
                marks = ", ".join("?" * (len(COLUMNS) + 3))
                table.executemany(f"INSERT OR REPLACE INTO jobs VALUES ({marks})", rows)
                table.commit()
            with whole(self.root / "index.sqlite") as part:
                shutil.copyfile(local, part)


def row_of(state: str, one: dict[str, Any]) -> list[Any]:
    facts = [json.dumps(one.get(name, {})) for name in ("values", "result", "scores")]
    return [state if name == "state" else one.get(name) for name in COLUMNS] + facts


def page(reports: list[dict[str, Any]], failures: list[dict[str, Any]]) -> str:
    seconds = sum(one["seconds"] for one in reports)
    counts = f"{len(reports)} done in {duration(seconds)} of work, {len(failures)} failed"
    cards = "\n".join(map(card, reports))
    rows = "\n".join(map(failure_row, failures))
    failed = (
        f"<h2>Failed</h2>\n<table><tr><th>line<th>job<th>attempts<th>reason</tr>\n{rows}\n</table>"
        if failures
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Lucid ISM: {len(reports)} results</title><style>{STYLE}</style></head><body>
<h1>Lucid ISM: results</h1>
<p class="counts">{counts}</p>
<input type="search" placeholder="Filter by text" aria-label="Filter by text">
{failed}
<h2>Results</h2>
<div class="grid">
{cards}
</div>
<script>{SCRIPT}</script>
</body></html>
"""


def number(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def card(one: dict[str, Any]) -> str:
    """One result: picture, prompt, time, scores, links. All paths are relative."""
    folder, files = f"jobs/{one['key']}", one["files"]
    label = html.escape(one["label"])
    picture = (
        f'<img src="{folder}/thumb.jpg" alt="{label}" loading="lazy">'
        if "thumb.jpg" in files
        else "no picture"
    )
    large = next((name for name in ("video.mp4", "sheet.jpg", "thumb.jpg") if name in files), "report.json")
    facts = [f"line {one['line']}", duration(one["seconds"]), one["host"]]
    facts += [
        f"{name} {number(one['result'][name])}" for name in ("steps", "splats") if name in one["result"]
    ]
    facts += ["continued from a checkpoint"] if one["resumed"] else []
    facts += [f"attempt {len(one['attempts']) + 1}"] if one.get("attempts") else []
    scores = ", ".join(f"{html.escape(name)} {number(value)}" for name, value in one["scores"].items())
    given = {name: value for name, value in one["values"].items() if value != one["label"]}
    values = html.escape(", ".join(f"{name} = {value}" for name, value in given.items()))
    named = [name for name in [*files, "report.json"] if name != "thumb.jpg"]
    links = " ".join(f'<a href="{folder}/{quote(name)}">{html.escape(name)}</a>' for name in named)
    return (
        f'<div class="card" data-text="{label.lower()} {values.lower()}">'
        f'<a class="picture" href="{folder}/{large}">{picture}</a><div class="text">'
        f'<div class="label">{label}</div><div class="facts">{html.escape(", ".join(facts))}</div>'
        + (f'<div class="facts"><b>{scores}</b></div>' if scores else "")
        + f'<div class="facts">{values}</div><div class="links">{links}</div></div></div>'
    )


def failure_row(one: dict[str, Any]) -> str:
    label, reason = html.escape(one["label"]), html.escape(one["reason"])
    count = len(one["attempts"])
    return (
        f'<tr data-text="{label.lower()}"><td>{one["line"]}<td>{label}<td>{count}'
        f'<td class="reason">{reason}</tr>'
    )
