"""The page and the table of all results."""

import html
import re
import sqlite3
from urllib.parse import unquote

import pytest

from lucid_batch.gallery import Gallery
from lucid_batch.store import Store


def report(key, line, label, **more):
    return {
        **{"key": key, "line": line, "label": label, "values": {"LucidPrompt.text": label}, "seconds": 75.5},
        **{"run_seconds": 70.0, "host": "tower", "worker": "worker-1", "pack": "1", "resumed": []},
        **{"result": {"steps": 9, "splats": 300}, "scores": {"score": 0.71234}, "attempts": []},
        **{"files": ["splat.ply", "thumb.jpg"], **more},
    }


@pytest.fixture
def gallery(tmp_path):
    store = Store(tmp_path / "out")
    store.open(beat=False)
    files = {"splat.ply": b"x", "thumb.jpg": b"x"}
    store.publish("k2", files, report("k2", 3, "a <b>mug</b>"))
    store.publish("k1", files, report("k1", 2, "a cat", resumed=["6"]))
    record = {"key": "k3", "line": 4, "label": "bad one", "values": {}, "reason": "no <way>"}
    store.give_up("k3", {**record, "attempts": [{"worker": "w", "reason": "no"}] * 3})
    made = Gallery(store)
    made.write()
    return made


def test_the_page_has_results_and_failures_and_only_relative_links(gallery):
    text = (gallery.root / "index.html").read_text()
    assert text.index("a cat") < text.index("a &lt;b&gt;mug&lt;/b&gt;") and "<b>mug" not in text
    assert "no &lt;way&gt;" in text and "score 0.712" in text and "1 min 16 s" in text
    assert "continued from a checkpoint" in text
    links = re.findall(r'(?:href|src)="([^"]+)"', text)
    assert links and all((gallery.root / link).is_file() for link in links)
    assert "http" not in text


def test_the_filter_finds_text_with_marks_and_links_are_quoted(gallery):
    names = ["a #1 & b.ply", "thumb.jpg"]
    gallery.store.publish("k4", dict.fromkeys(names, b"x"), report("k4", 5, "A <b> & C", files=names))
    gallery.write()
    text = (gallery.root / "index.html").read_text()
    found = [html.unescape(one) for one in re.findall(r'data-text="([^"]*)"', text)]
    assert any("a <b> & c" in one for one in found)
    (link,) = re.findall(r'href="([^"]+)">a #1 &amp; b.ply', text)
    assert (gallery.root / unquote(link)).is_file() and "#" not in link


def test_the_table_has_a_row_for_each_job(gallery):
    with sqlite3.connect(gallery.root / "index.sqlite") as table:
        rows = table.execute("SELECT key, state, line, reason FROM jobs ORDER BY line").fetchall()
    assert rows == [("k1", "done", 2, None), ("k2", "done", 3, None), ("k3", "failed", 4, "no <way>")]


def test_a_later_result_is_added(gallery):
    gallery.store.publish("k3", {}, report("k3", 4, "good now", files=[]))
    gallery.write()
    text = (gallery.root / "index.html").read_text()
    assert "3 done" in text and "0 failed" in text and "no picture" in text
