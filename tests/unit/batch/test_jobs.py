"""Rows become jobs; a mistake in a file is one message with its line and the closest name."""

import json

import pytest
from lucid_batch.api.client import read_graph

from lucid_batch import Mistake, jobs
from lucid_batch.jobs import BadRow, Row, fill_rows, key_of, missing_on, read_rows, read_upload, why_refused

STEPS = {"required": {"steps": ["INT", {"min": 1, "max": 100}]}}
INFO = {
    "LucidDream": {
        "input": {
            "required": {
                "preset": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "cpu", "inputs": STEPS}]}],
                "strength": ["FLOAT", {"min": 0.01, "max": 1.0}],
            }
        }
    },
    "LucidPointCloud": {"input": {"required": {"shape": ["COMBO", {"options": ["ball", "box", "torus"]}]}}},
    "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [["other.safetensors"], {}]}}},
}


@pytest.fixture(scope="module")
def graph():
    return read_graph("text_to_splat.json")


def rows_of(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_rows(path)


def filled(graph, tmp_path, **values):
    (job,), bad = fill_rows(graph, [Row(2, values)], tmp_path)
    assert not bad
    return job


def test_csv_and_jsonl_give_the_same_jobs(graph, tmp_path):
    table = 'LucidPrompt.text,LucidDream.seed,LucidDream.strength\n"a mug, blue",7,1\nA cat,,0.5\n\n'
    lines = '{"LucidPrompt.text": "a mug, blue", "LucidDream.seed": 7, "LucidDream.strength": 1.0}\n'
    lines += '{"LucidPrompt.text": "A cat", "LucidDream.strength": 0.5}\n'
    made = []
    for name, text in (("a.csv", table), ("a.jsonl", lines)):
        rows, bad = rows_of(tmp_path, name, text)
        found, unfilled = fill_rows(graph, rows, tmp_path)
        assert not bad and not unfilled
        made.append([key_of(job.graph, "1", job.models) for job in found])
        assert [job.label for job in found] == ["a mug, blue", "A cat"]
        assert found[0].graph["6"]["inputs"]["seed"] == 7
        assert found[1].graph["6"]["inputs"]["seed"] == graph["6"]["inputs"]["seed"]  # an empty cell
    assert made[0] == made[1] and len(set(made[0])) == 2


def test_a_line_is_that_of_the_file(tmp_path):
    text = 'LucidPrompt.text,LucidDream.seed\n"two\nlines",1\nshort\nlast,2\n'
    rows, bad = rows_of(tmp_path, "a.csv", text)
    assert [row.line for row in rows] == [2, 5]
    assert bad == [BadRow(4, "1 cells in place of 2; quote a text with commas")]
    rows, bad = rows_of(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": \n[1]\n')
    assert [row.line for row in rows] == [1] and [row.line for row in bad] == [3, 4]


def test_a_line_of_jsonl_ends_at_a_newline_alone(tmp_path):
    rows, bad = rows_of(tmp_path, "a.jsonl", '{"a": "one\u2028two"}\r\n{"a": 2}\n')
    assert [row.values["a"] for row in rows] == ["one\u2028two", 2] and not bad


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "LucidPrompt.text\n", "has no rows"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "a.b,a.b\n1,2\n", "the column 'a.b' is there twice"),
        ("a.csv", 'a.b\n"1\n', "is not a valid CSV file: unexpected end of data; is a quote open"),
        ("a.csv", b"a.b\n\xff\n", "is not a text file in UTF-8"),
        ("a.txt", "x", "jobs are read from a .csv or .jsonl file"),
        ("none/a.csv", None, "cannot be read: No such file"),
    ],
)
def test_a_file_of_another_form_is_one_message(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Mistake, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    "column, message",
    [
        ("LucidPromt.text", "no node 'LucidPromt'; did you mean LucidPrompt"),
        ("LucidPrompt.txt", "LucidPrompt has no input 'txt' to set; did you mean text"),
        ("LucidDream.sed", "LucidDream has no input 'sed' to set; did you mean seed"),
        ("LucidPrompt.clip", "no input 'clip' to set"),
        ("Zebra.x", "no node 'Zebra'; there is CheckpointLoaderSimple, "),
        ("text", "a column is NODE.INPUT"),
    ],
)
def test_an_unknown_column_is_named_with_the_closest(graph, tmp_path, column, message):
    with pytest.raises(Mistake) as error:
        fill_rows(graph, [Row(2, {column: "x"})], tmp_path)
    assert message in str(error.value)


def test_two_columns_for_the_same_input_are_a_mistake(graph, tmp_path):
    (number,) = [number for number, node in graph.items() if node["class_type"] == "LucidDream"]
    for other in (f"{number}.steps", "LucidDream.preset.steps"):
        with pytest.raises(Mistake, match=f"'LucidDream.steps' and '{other}' set the same input"):
            fill_rows(graph, [Row(2, {"LucidDream.steps": 1, other: 2})], tmp_path)


@pytest.mark.parametrize(
    "column, value",
    [
        ("LucidDream.seed", "many"),
        ("LucidDream.seed", True),
        ("LucidDream.seed", [1]),
        ("LucidDream.freeze_color", "1"),
        ("LucidDream.freeze_color", 1),
        ("LucidPrompt.text", 3),
    ],
)
def test_a_value_of_another_type_is_a_bad_row(graph, tmp_path, column, value):
    found, (bad,) = fill_rows(graph, [Row(2, {"LucidDream.seed": 1}), Row(3, {column: value})], tmp_path)
    assert len(found) == 1 and bad.line == 3 and column in bad.reason


@pytest.mark.parametrize(
    "column, value, reason",
    [
        ("LucidDream.steps", 0, "LucidDream.steps is 0; it must be from 1 to 100"),
        ("LucidDream.steps", 2.5, "LucidDream.steps is 2.5; it takes a whole number"),
        ("LucidDream.strength", 1.5, "it must be from 0.01 to 1.0"),
        ("LucidPointCloud.shape", "bal", "LucidPointCloud.shape is 'bal'; did you mean ball"),
        ("LucidDream.steps", 100, ""),
        ("LucidPointCloud.shape", "torus", ""),
        ("LucidPrompt.text", "anything", ""),
        ("CheckpointLoaderSimple.ckpt_name", "x.safetensors", ""),  # that is the machine's matter
    ],
)
def test_a_value_is_checked_against_the_nodes_own_bounds(graph, tmp_path, column, value, reason):
    found = why_refused(filled(graph, tmp_path, **{column: value}), INFO)
    assert reason in found and bool(reason) == bool(found)


def test_a_server_without_a_model_or_node_is_told(graph):
    loader = {"1": graph["1"]}
    assert missing_on(INFO, loader) == (
        "the model file lucid_demo_prior.safetensors is missing (CheckpointLoaderSimple.ckpt_name)"
    )
    assert missing_on({}, loader) == "the node CheckpointLoaderSimple is not installed"
    loader = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "other.safetensors"}}}
    assert missing_on(INFO, loader) == ""


def test_a_key_is_made_of_graph_version_and_models(graph):
    one = key_of(graph, "1", {"a": "0"})
    assert one == key_of(json.loads(json.dumps(graph)), "1", {"a": "0"}) and len(one) == jobs.KEY_DIGITS
    assert len({one, key_of(graph, "2", {"a": "0"}), key_of(graph, "1", {"a": "1"})}) == 3
    whole, same = ({"1": {"class_type": "X", "inputs": {"x": value}}} for value in (1, 1.0))
    assert key_of(whole, "1", {}) == key_of(same, "1", {})


def test_a_picture_beside_the_file_is_uploaded_by_its_content(graph, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"a cat")
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}}
    job = filled(graph, tmp_path, **{"LoadImage.image": "cat.png"})
    ((name, path),) = job.uploads.items()
    assert read_upload(name, path) == b"a cat"
    assert job.graph["1"]["inputs"]["image"] == name and path == str(tmp_path / "cat.png")
    (tmp_path / "cat.png").write_bytes(b"another cat")
    with pytest.raises(OSError, match=r"cat\.png has changed since the batch began"):
        read_upload(name, path)
    assert list(filled(graph, tmp_path, **{"LoadImage.image": "cat.png"}).uploads) != [name]
    assert not filled(graph, tmp_path, **{"LoadImage.image": "dog.png"}).uploads
