#!/usr/bin/env python3
"""Runs a workflow on a ComfyUI server and saves its output files. A simple client of the HTTP and websocket
API, which you may copy.

    python client.py text_to_splat.json --set 'LucidPrompt.text=a blue mug' --set LucidDream.steps=100 --out
    DIR

Needs aiohttp, which ComfyUI's Python has. The workflow must be in API format ("Export (API)" in the menu of
the web page).
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import struct
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

Graph = dict  # API format: node id -> {"class_type": ..., "inputs": ...}
SERVER = "127.0.0.1:8188"
PICTURE, TEXT = 1, 3  # types of the server's binary messages
PLAIN_SECONDS = 10  # least time between two lines of progress if stderr is not a terminal


@dataclass(frozen=True)
class Progress:
    """Progress of the running node: `step` of `steps` (both 0 at its start), its last text, and its preview
    image. `node` is its class, `id` its id.
    """

    node: str
    step: int
    steps: int
    text: str = ""
    picture: bytes = b""  # a JPEG or PNG file; empty except when a new preview has arrived
    id: str = field(default="", compare=False)


OnProgress = Callable[[Progress], None]


class ComfyError(RuntimeError):
    """The server rejected a graph, a node failed, or the server does not answer.

    node: class of the node; "" = of none. kind: class of the node's exception, such as "ValueError", type of
    the rejection, such as "value_smaller_than_min", or "interrupted"; "" = other. input: name of the rejected
    input; "" = unknown. If several inputs are rejected, these are of the first one.
    """

    def __init__(self, message: str, node: str = "", kind: str = "", input: str = "") -> None:
        super().__init__(message, node, kind, input)
        self.message, self.node, self.kind, self.input = message, node, kind, input

    def __str__(self) -> str:
        return f"{self.node}: {self.message}" if self.node else self.message


class Client:
    """A client of the server at `address`, host:port or a URL.

    `log_tail` returns the end of the server's log, for the error message if it stops. A server that sends
    nothing for `silence_s` seconds counts as one that does not answer; None = wait for ever.
    """

    def __init__(
        self, address: str = SERVER, log_tail: Callable[[], str] = str, silence_s: float | None = None
    ):
        self.address = address
        self.log_tail = log_tail
        self.silence_s = silence_s
        self.prompt_id: str | None = None  # of the graph that was queued last

    def run(self, graph: Graph, on_progress: OnProgress = lambda progress: None) -> dict:
        """Queue `graph`, wait until it has ended and return its history entry. Raises ComfyError if the
        graph is rejected, a node fails or the run is interrupted.
        """
        return asyncio.run(self._guarded(self._run(graph, on_progress)))

    def object_info(self) -> dict:
        """Node class -> its description, for all nodes of the server."""
        return json.loads(self.request("GET", "/object_info"))

    def interrupt(self, wait_s: float = 10) -> None:
        """Stop the graph that this client queued last. Waits up to `wait_s` seconds, so that its node can
        save its state.
        """
        if self.prompt_id is None:
            return
        self.request("POST", f"/api/jobs/{self.prompt_id}/cancel")
        give_up = time.monotonic() + wait_s
        while self.is_running() and time.monotonic() < give_up:
            time.sleep(0.2)

    def view(self, file: dict) -> bytes:
        """The content of a file in a history entry; `file` is {"filename", "subfolder", "type"}."""
        return self.request(
            "GET", "/view", params={key: file[key] for key in ("filename", "subfolder", "type")}
        )

    def upload(self, name: str, content: bytes) -> str:
        """Upload a file to the server's input folder; returns its name for the nodes' inputs."""
        form = aiohttp.FormData({"overwrite": "true"})
        form.add_field("image", content, filename=name)  # the field is called so for all file types
        return json.loads(self.request("POST", "/upload/image", data=form))["name"]

    def is_running(self) -> bool:
        running = json.loads(self.request("GET", "/queue"))["queue_running"]
        return any(prompt_id == self.prompt_id for _, prompt_id, *_ in running)

    def request(self, method: str, path: str, *, data=None, params=None) -> bytes:
        return asyncio.run(self._guarded(self._fetch(method, path, data=data, params=params)))

    async def _guarded(self, work):
        """Await `work`. Converts a lost connection to a ComfyError with the end of the server's log."""
        try:
            return await work
        except (aiohttp.ClientConnectionError, asyncio.TimeoutError) as error:
            message = f"the ComfyUI at {self.address} has died or does not answer.\n{self.log_tail()}"
            raise ComfyError(message.rstrip()) from error
        except (aiohttp.ClientError, json.JSONDecodeError) as error:
            raise ComfyError(f"the server at {self.address} is not ComfyUI: {error}") from error

    def _session(self) -> aiohttp.ClientSession:
        url = self.address if "://" in self.address else f"http://{self.address}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self.silence_s)
        return aiohttp.ClientSession(url, timeout=timeout)

    async def _fetch(self, method: str, path: str, *, data=None, params=None) -> bytes:
        async with (
            self._session() as session,
            session.request(method, path, data=data, params=params) as response,
        ):
            if response.status != 200:
                raise ComfyError(f"{method} {path}: status {response.status}: {await response.text()}")
            return await response.read()

    async def _run(self, graph: Graph, on_progress: OnProgress) -> dict:
        client_id = uuid.uuid4().hex
        async with self._session() as session:
            silence = aiohttp.ClientWSTimeout(ws_receive=self.silence_s)
            # Previews are larger than aiohttp's default limit for one message.
            async with session.ws_connect(
                "/ws", params={"clientId": client_id}, max_msg_size=0, timeout=silence
            ) as events:
                self.prompt_id = await _queue(session, graph, client_id)
                await _follow(events, graph, self.prompt_id, on_progress)
            async with session.get(f"/history/{self.prompt_id}") as response:
                entry = (await response.json())[self.prompt_id]
        _raise_for_failure(entry)
        return entry


async def _queue(session: aiohttp.ClientSession, graph: Graph, client_id: str) -> str:
    async with session.post("/prompt", json={"prompt": graph, "client_id": client_id}) as response:
        answer = await response.json(content_type=None)
        if response.status != 200:
            raise _refusal(answer)
        return answer["prompt_id"]


async def _follow(
    events: aiohttp.ClientWebSocketResponse, graph: Graph, prompt_id: str, on_progress: OnProgress
) -> None:
    """Report progress until the server has stored the prompt's history entry.

    Raises ServerDisconnectedError if the connection ends before that.
    """
    now = Progress("", 0, 0)
    async for message in events:
        if message.type is aiohttp.WSMsgType.BINARY:
            if now.node:  # otherwise it belongs to another run
                now = _heard(message.data, now, on_progress)
            continue
        event = json.loads(message.data)
        kind, data = event["type"], event["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        # Sent last; execution_success is sent before the history entry exists.
        if kind == "executing" and data["node"] is None:
            return
        if kind in ("executing", "progress"):
            node = graph.get(data["node"], {}).get("class_type", data["node"])
            now = Progress(
                node,
                int(data.get("value", 0)),
                int(data.get("max", 0)),
                now.text if kind == "progress" else "",
                id=data["node"],
            )
            on_progress(now)
    raise aiohttp.ServerDisconnectedError


def _heard(message: bytes, now: Progress, on_progress: OnProgress) -> Progress:
    """Report the text or preview image of a binary message; returns the progress with the last text."""
    (kind,) = struct.unpack_from(">I", message)
    if kind == TEXT:  # layout: length of the node's id, the id, the text
        (length,) = struct.unpack_from(">I", message, 4)
        now = replace(now, text=message[8 + length :].decode())
        on_progress(now)
    elif kind == PICTURE:  # layout: image format, the file
        on_progress(replace(now, picture=message[8:]))
    return now


def _refusal(answer: dict) -> ComfyError:
    """The server's rejection of a graph as an error, whose message has a line for each rejected input."""
    rejected = answer.get("node_errors", {}).values()
    found = [(node["class_type"], error) for node in rejected for error in node["errors"]]
    node, first = found[0] if found else ("", answer["error"])
    others = [f"{other}: {error['message']}: {error['details']}" for other, error in found[1:]]
    return ComfyError(
        "\n".join([f"{first['message']}: {first['details']}", *others]),
        node,
        first["type"],
        first.get("extra_info", {}).get("input_name", ""),
    )


def _raise_for_failure(entry: dict) -> None:
    for event, data in entry["status"]["messages"]:
        if event == "execution_error":
            kind = data["exception_type"].rpartition(".")[2]
            raise ComfyError(f"{data['exception_message'].strip()} ({kind})", data["node_type"], kind)
        if event == "execution_interrupted":
            raise ComfyError("the run was interrupted", data["node_type"], "interrupted")


def output_files(entry: dict) -> Iterator[dict]:
    """Each {"filename", "subfolder", "type"} that the nodes report in a history entry."""
    for node in entry["outputs"].values():
        for values in node.values():
            yield from (value for value in values if isinstance(value, dict) and "filename" in value)


def fill(graph: Graph, values: dict[str, dict]) -> Graph:
    """A copy of `graph` with the inputs in `values`: node (class_type or id) -> {input: value}.

    A value of None leaves an input unchanged. Raises ValueError if a node is not in the graph.
    """
    graph = copy.deepcopy(graph)
    for name, inputs in values.items():
        for node in nodes_of(graph, name):
            node["inputs"].update(
                {input_of(node, key): value for key, value in inputs.items() if value is not None}
            )
    return graph


def input_of(node: dict, key: str) -> str:
    """The full name of a node's input `key`, which may be an input of a preset or method, such as
    preset.steps.
    """
    return (
        next((name for name in node["inputs"] if name.endswith(f".{key}")), key)
        if key not in node["inputs"]
        else key
    )


def nodes_of(graph: Graph, name: str) -> list[dict]:
    """The nodes with the class or the id `name`. Raises ValueError if there are none."""
    nodes = [node for key, node in graph.items() if name in (key, node["class_type"])]
    if not nodes:
        known = ", ".join(dict.fromkeys(node["class_type"] for node in graph.values()))
        raise ValueError(f"the workflow has no {name} node; it has {known}")
    return nodes


def setting(graph: Graph, text: str) -> dict[str, dict]:
    """Parse 'NODE.INPUT=VALUE' to the form that `fill` takes. The value is converted to the type of the
    current one: text, number or boolean.

    Raises ValueError for a wrong form, an unknown node or input, and a value of the wrong type.
    """
    target, equals, value = text.partition("=")
    name, dot, key = target.partition(".")
    if not (equals and dot):
        raise ValueError(f"--set takes NODE.INPUT=VALUE, such as LucidPrompt.text='a blue mug', not {text!r}")
    (node, *_) = nodes_of(graph, name)
    key = input_of(node, key)
    if key not in node["inputs"] or isinstance(node["inputs"][key], list):
        free = ", ".join(key for key, held in node["inputs"].items() if not isinstance(held, list))
        raise ValueError(f"{name} has no input {key!r} to set; it has {free}")
    return {name: {key: converted(value, node["inputs"][key], target)}}


def converted(value: str, held: Any, target: str) -> Any:
    """`value` converted to the type of `held`. Raises ValueError, naming `target`, if that is not
    possible.
    """
    if isinstance(held, str):
        return value
    try:
        number = json.loads(value.lower())
    except json.JSONDecodeError:
        number = None
    wanted = (bool,) if isinstance(held, bool) else (int, float)
    if type(number) not in wanted:
        raise ValueError(
            f"{target} takes {'true or false' if wanted == (bool,) else 'a number'}, not {value!r}"
        )
    return number


def read_graph(name: str) -> Graph:
    """The workflow in the file `name`, in the current folder or next to this script.

    Raises ValueError if there is no such file or it is not a workflow in API format.
    """
    file = next((path for path in (Path(name), Path(__file__).parent / name) if path.is_file()), None)
    if file is None:
        raise ValueError(f"there is no workflow file {name}")
    try:
        graph = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file} is not a JSON file: {error}") from error
    if isinstance(graph, dict) and "nodes" in graph:
        raise ValueError(f"{file} is in the web page's format; save it there with Export (API)")
    nodes = graph.values() if isinstance(graph, dict) else [graph]
    if not all(isinstance(node, dict) and {"class_type", "inputs"} <= set(node) for node in nodes):
        raise ValueError(f"{file} is not a workflow in API format")
    return graph


class Printer:
    """Prints progress to stderr: one updated line on a terminal, otherwise a line every PLAIN_SECONDS."""

    def __init__(self) -> None:
        self.shown = float("-inf")

    def __call__(self, progress: Progress) -> None:
        if not progress.steps or progress.picture:
            return
        now, terminal, last = time.monotonic(), sys.stderr.isatty(), progress.step == progress.steps
        if not (terminal or last or now - self.shown > PLAIN_SECONDS):
            return
        self.shown = now
        line = f"{progress.node}: {progress.text or f'step {progress.step} of {progress.steps}'}"
        print(
            f"\r{line}\033[K" if terminal else line,
            end="\n" if last or not terminal else "",
            file=sys.stderr,
            flush=True,
        )


def keep(client: Client, entry: dict, folder: Path) -> list[Path]:
    """Write the output files of a history entry into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[Path, dict] = {}
    for file in output_files(entry):
        if file["type"] != "output":  # a preview
            continue
        name = Path(file["filename"]).name
        taken = kept.get(folder / name, file) != file
        kept[folder / ("_".join([*Path(file["subfolder"]).parts, name]) if taken else name)] = file
    for path, file in kept.items():
        path.write_bytes(client.view(file))
    return list(kept)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workflow", help="a workflow in API format; one next to this script needs no folder")
    help = "set an input of a node, given by its class or id; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help=help)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="folder for the files (default: the current one)",
    )
    parser.add_argument("--server", default=SERVER, metavar="HOST:PORT", help="default: %(default)s")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a Windows console cannot print every path
    client = Client(options.server)
    try:
        graph = read_graph(options.workflow)
        for text in options.set:
            graph = fill(graph, setting(graph, text))
        for path in keep(client, client.run(graph, Printer()), options.out):
            print(path)
        return 0
    except KeyboardInterrupt:
        client.interrupt()
        print("\nInterrupted; the run was stopped on the server too.", file=sys.stderr)
        return 130
    except (ComfyError, ValueError, OSError) as error:
        print("error:", "; ".join(filter(None, map(str.strip, str(error).splitlines()))), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
