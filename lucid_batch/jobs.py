"""Rows of a CSV or JSONL file become jobs: filled-in graphs with a key made of their content."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import Mistake
from .api.client import Graph, converted, fill, input_of

MODELS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".sft")
UPLOADS = (".png", ".jpg", ".jpeg", ".webp", ".ply", ".obj", ".glb", ".npz", ".xyz", ".mp4")
KEY_DIGITS = 20  # of 64; a folder's name
LABEL_LETTERS = 80


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be a job: its line in the file and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """A row: its line in the file, and the values that it gives, column -> text or JSON value."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One row, filled into the workflow.

    key: hash of all that the result depends on. values: column -> value. models: file of a model in the graph
    -> its hash, "" = unknown. uploads: name on the server -> file here that the graph reads.
    """

    line: int
    label: str
    values: dict[str, Any]
    graph: Graph
    uploads: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    key: str = ""


def read_rows(path: Path) -> tuple[list[Row], list[BadRow]]:
    """The rows of a .csv or .jsonl file, and those that cannot be read. Raises Mistake for a file that is not
    there, has another form or no rows.
    """
    readers = {".csv": read_csv, ".jsonl": read_jsonl}
    if path.suffix.lower() not in readers:
        raise Mistake(f"{path}: jobs are read from a .csv or .jsonl file")
    try:
        found = list(readers[path.suffix.lower()](path))
    except OSError as error:
        raise Mistake(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{path} is not a text file in UTF-8: {error}") from error
    except csv.Error as error:
        raise Mistake(f"{path} is not a valid CSV file: {error}; is a quote open?") from error
    if not found:
        raise Mistake(f"{path} has no rows")
    return [one for one in found if isinstance(one, Row)], [one for one in found if isinstance(one, BadRow)]


def read_csv(path: Path) -> Iterator[Row | BadRow]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        columns = [name.strip() for name in next(reader, [])]
        twice = {name for name in columns if columns.count(name) > 1}
        if twice:
            raise Mistake(f"{path}: the column {min(twice)!r} is there twice")
        before = reader.line_num
        for cells in reader:
            line, before = before + 1, reader.line_num  # a quoted cell may span lines
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                yield BadRow(line, f"{len(cells)} cells in place of {len(columns)}; quote a text with commas")
                continue
            yield Row(line, {name: cell for name, cell in zip(columns, cells) if cell != ""})


def read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except ValueError as error:
            yield BadRow(line, f"no JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Row(line, {name: value for name, value in values.items() if value is not None})
        else:
            yield BadRow(line, 'no JSON object such as {"LucidPrompt.text": "a blue mug"}')


def closest(name: str, names: Iterable[str]) -> str:
    """The names most like `name`, as the end of a message; all of them if none is alike."""
    names = list(dict.fromkeys(names))
    near = difflib.get_close_matches(name, names, 3, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names)}"


def place_of(graph: Graph, column: str) -> tuple[str, str]:
    """Node (class or id) and full name of the input that `column` means. Raises Mistake, with the closest
    names, if there is none.
    """
    name, dot, key = column.partition(".")
    if not dot:
        raise Mistake(f"column {column!r}: a column is NODE.INPUT, such as LucidPrompt.text")
    nodes = [node for number, node in graph.items() if name in (number, node["class_type"])]
    if not nodes:
        classes = (node["class_type"] for node in graph.values())
        raise Mistake(f"column {column!r}: the workflow has no node {name!r}; {closest(name, classes)}")
    for node in nodes:
        full = input_of(node, key)
        if full not in node["inputs"] or isinstance(node["inputs"][full], list):
            free = [input for input, held in node["inputs"].items() if not isinstance(held, list)]
            raise Mistake(f"column {column!r}: {name} has no input {key!r} to set; {closest(key, free)}")
    return name, input_of(nodes[0], key)


def value_of(value: Any, held: Any, column: str) -> Any:
    """`value` of a row as the type of the workflow's own value `held`. Raises ValueError if it is none."""
    if isinstance(value, str):
        return converted(value, held, column)
    if isinstance(held, str) or isinstance(value, bool) != isinstance(held, bool):
        wanted = (
            "a text" if isinstance(held, str) else "true or false" if isinstance(held, bool) else "a number"
        )
        raise ValueError(f"{column} takes {wanted}, not {json.dumps(value)}")
    if not isinstance(value, bool | int | float):
        raise ValueError(f"{column} takes a number, not {json.dumps(value)}")
    return value


def fill_rows(graph: Graph, rows: list[Row], folder: Path) -> tuple[list[Job], list[BadRow]]:
    """The rows as jobs without keys, and those with bad values.

    folder: where files are that rows name; they are uploaded under a name made of their content. Raises
    Mistake for a column that the workflow does not have, or two that set the same input.
    """
    columns = dict.fromkeys(column for row in rows for column in row.values)
    places = {column: place_of(graph, column) for column in columns}
    require_different(graph, places)
    jobs, bad = [], []
    for row in rows:
        try:
            jobs.append(job_of(graph, row, places, folder))
        except ValueError as error:
            bad.append(BadRow(row.line, str(error)))
    return jobs, bad


def require_different(graph: Graph, places: dict[str, tuple[str, str]]) -> None:
    """Raises Mistake if two columns set the same input, such as LucidPrompt.text and 3.text."""
    first: dict[tuple[str, str], str] = {}
    for column, (name, key) in places.items():
        for number, node in graph.items():
            if name in (number, node["class_type"]):
                other = first.setdefault((number, key), column)
                if other != column:
                    raise Mistake(f"the columns {other!r} and {column!r} set the same input; leave one out")


def upload_name(content: bytes, suffix: str) -> str:
    """A file's name on the server, made of its content."""
    return f"{hashlib.sha256(content).hexdigest()[:KEY_DIGITS]}{suffix.lower()}"


def read_upload(name: str, path: str) -> bytes:
    """The content of the file `path`. Raises OSError if it cannot be read, or is not the one that `name` was
    made of.
    """
    content = Path(path).read_bytes()
    if upload_name(content, Path(path).suffix) != name:
        raise OSError(f"the file {path} has changed since the batch began")
    return content


def job_of(graph: Graph, row: Row, places: dict[str, tuple[str, str]], folder: Path) -> Job:
    filled, values, uploads = graph, {}, {}
    for column, given in row.values.items():
        name, key = places[column]
        node = next(node for number, node in graph.items() if name in (number, node["class_type"]))
        values[column] = value = value_of(given, node["inputs"][key], column)
        file = folder / value if isinstance(value, str) and value.lower().endswith(UPLOADS) else None
        if file and file.is_file():
            value = upload_name(file.read_bytes(), file.suffix)
            uploads[value] = str(file.resolve())
        filled = fill(filled, {name: {key: value}})
    texts = [str(value) for value in values.values() if isinstance(value, str) and value.strip()]
    rest = ", ".join(f"{column.partition('.')[2]} {value}" for column, value in values.items())
    label = " ".join((texts[0] if texts else rest or "the workflow as it is").split())
    return Job(row.line, label[:LABEL_LETTERS], values, filled, uploads, dict.fromkeys(models_of(filled), ""))


def models_of(graph: Graph) -> list[str]:
    """The files of models that a graph names."""
    values = (value for node in graph.values() for value in node["inputs"].values())
    return sorted({value for value in values if isinstance(value, str) and value.lower().endswith(MODELS)})


def canonical(value: Any) -> Any:
    """`value` with its whole numbers as integers: 1 and 1.0 are the same to ComfyUI."""
    if isinstance(value, dict):
        return {name: canonical(held) for name, held in value.items()}
    if isinstance(value, list):
        return [canonical(held) for held in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def key_of(graph: Graph, version: str, models: dict[str, str]) -> str:
    """The hash of the filled-in graph, the pack's version and the hashes of the models."""
    content = {"graph": canonical(graph), "pack": version, "models": models}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def input_spec(info: dict[str, Any], node: dict[str, Any], name: str) -> list[Any] | None:
    """What the server's object_info says of an input: [type, options]; None if it does not know it.

    Inputs of a preset, such as preset.steps, are found below the chosen option.
    """
    inputs = info.get(node["class_type"], {}).get("input", {})
    known: dict[str, Any] = {**inputs.get("required", {}), **inputs.get("optional", {})}
    parts, path = name.split("."), ""
    for part in parts[:-1]:
        path = f"{path}.{part}" if path else part
        options = known.get(part, [None, {}])[1].get("options", [])
        chosen = node["inputs"].get(path)
        below: dict[str, Any] = next(
            (one["inputs"] for one in options if isinstance(one, dict) and one["key"] == chosen), {}
        )
        known = {**below.get("required", {}), **below.get("optional", {})}
    return known.get(parts[-1])


def choices_of(spec: list[Any]) -> list[Any] | None:
    """The values that a combo offers; None if it is no combo."""
    if isinstance(spec[0], list):
        return spec[0]
    options = spec[1].get("options") if len(spec) > 1 and "COMBO" in spec[0] else None
    return [one["key"] if isinstance(one, dict) else one for one in options] if options else None


def why_refused(job: Job, info: dict[str, Any]) -> str:
    """Why ComfyUI would refuse a value of the job's row, by the nodes' own bounds; "" if it would not."""
    for column, value in job.values.items():
        name, key = place_of(job.graph, column)
        node = next(node for number, node in job.graph.items() if name in (number, node["class_type"]))
        spec = input_spec(info, node, key)
        if spec is None or (isinstance(value, str) and value.lower().endswith(MODELS + UPLOADS)):
            continue
        choices, bounds = choices_of(spec), spec[1] if len(spec) > 1 else {}
        if choices is not None and value not in choices:
            return f"{column} is {value!r}; {closest(str(value), map(str, choices))}"
        if spec[0] == "INT" and isinstance(value, float) and not value.is_integer():
            return f"{column} is {value}; it takes a whole number"
        if spec[0] in ("INT", "FLOAT") and not isinstance(value, str):
            low, high = bounds.get("min", value), bounds.get("max", value)
            if not low <= value <= high:
                return f"{column} is {value}; it must be from {low} to {high}"
    return ""


def missing_on(info: dict[str, Any], graph: Graph) -> str:
    """What a server lacks for a graph, a node or a model's file; "" if nothing."""
    for node in graph.values():
        if node["class_type"] not in info:
            return f"the node {node['class_type']} is not installed"
        for name, value in node["inputs"].items():
            spec = input_spec(info, node, name)
            choices = choices_of(spec) if spec else None
            of_model = isinstance(value, str) and value.lower().endswith(MODELS)
            if of_model and choices is not None and value not in choices:
                return f"the model file {value} is missing ({node['class_type']}.{name})"
    return ""
