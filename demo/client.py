"""A plain, synchronous client of ComfyUI's HTTP and websocket API."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aiohttp

Graph = dict  # API format: node id -> {"class_type": ..., "inputs": ...}


@dataclass(frozen=True)
class Progress:
    """The node at work; `step` of `steps`, both 0 when it has just begun."""

    node: str
    step: int
    steps: int


OnProgress = Callable[[Progress], None]


class ComfyError(RuntimeError):
    """The server refused a graph, a node failed, or the server is gone."""


class Client:
    """Talks to the server at `address` (host:port). `log_tail` gives what its log last said, for the error if it dies."""

    def __init__(self, address: str, log_tail: Callable[[], str] = str):
        self.address, self.log_tail = address, log_tail

    def run(self, graph: Graph, on_progress: OnProgress = lambda progress: None) -> dict:
        """Queue `graph`, wait for its end and return its history entry. Raises ComfyError where a node fails."""
        return asyncio.run(self._guarded(self._run(graph, on_progress)))

    def object_info(self) -> dict:
        """Node class -> its description."""
        return json.loads(self._request("GET", "/object_info"))

    def interrupt(self, wait_s: float = 10) -> None:
        """Stop the graph that is running now, and give its node time to save what it has."""
        self._request("POST", "/interrupt", json={})
        give_up = time.monotonic() + wait_s
        while json.loads(self._request("GET", "/queue"))["queue_running"] and time.monotonic() < give_up:
            time.sleep(0.2)

    def view(self, file: dict) -> bytes:
        """The content of one file of a history entry: {"filename", "subfolder", "type"}."""
        return self._request("GET", "/view", params={key: file[key] for key in ("filename", "subfolder", "type")})

    def upload(self, name: str, content: bytes) -> str:
        """Put a file into the server's input folder; returns the name under which nodes find it."""
        form = aiohttp.FormData({"overwrite": "true"})
        form.add_field("image", content, filename=name)  # the field's name, whatever the file is
        return json.loads(self._request("POST", "/upload/image", data=form))["name"]

    def _request(self, method: str, path: str, *, json=None, data=None, params=None) -> bytes:
        return asyncio.run(self._guarded(self._fetch(method, path, json=json, data=data, params=params)))

    async def _guarded(self, work):
        """Await `work`; a lost connection becomes a ComfyError that shows what the server last said."""
        try:
            return await work
        except (aiohttp.ClientConnectionError, asyncio.TimeoutError) as error:
            raise ComfyError(f"the ComfyUI at {self.address} has died or does not answer.\n{self.log_tail()}") from error

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        return aiohttp.ClientSession(f"http://{self.address}", timeout=timeout)

    async def _fetch(self, method: str, path: str, *, json=None, data=None, params=None) -> bytes:
        async with self._session() as session, session.request(method, path, json=json, data=data, params=params) as response:
            if response.status != 200:
                raise ComfyError(f"{method} {path}: status {response.status}: {await response.text()}")
            return await response.read()

    async def _run(self, graph: Graph, on_progress: OnProgress) -> dict:
        client_id = uuid.uuid4().hex
        async with self._session() as session:
            # Previews are larger than aiohttp's default limit for one message.
            async with session.ws_connect("/ws", params={"clientId": client_id}, max_msg_size=0) as events:
                prompt_id = await _queue(session, graph, client_id)
                await _follow(events, graph, prompt_id, on_progress)
            async with session.get(f"/history/{prompt_id}") as response:
                entry = (await response.json())[prompt_id]
        _raise_for_failure(entry)
        return entry


async def _queue(session: aiohttp.ClientSession, graph: Graph, client_id: str) -> str:
    async with session.post("/prompt", json={"prompt": graph, "client_id": client_id}) as response:
        answer = await response.json(content_type=None)
        if response.status != 200:
            raise ComfyError("\n".join(_refusals(answer)))
        return answer["prompt_id"]


async def _follow(events: aiohttp.ClientWebSocketResponse, graph: Graph, prompt_id: str, on_progress: OnProgress) -> None:
    """Report progress until the server has filed the prompt's history. Raises ServerDisconnectedError before that."""
    async for message in events:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue  # a preview picture
        event = json.loads(message.data)
        kind, data = event["type"], event["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "executing" and data["node"] is None:  # sent last; execution_success comes before the history
            return
        if kind in ("executing", "progress"):
            node = graph.get(data["node"], {}).get("class_type", data["node"])
            on_progress(Progress(node, int(data.get("value", 0)), int(data.get("max", 0))))
    raise aiohttp.ServerDisconnectedError


def _refusals(answer: dict) -> Iterator[str]:
    """One line for each fault that the server's check of a graph found."""
    for node in answer.get("node_errors", {}).values():
        for error in node["errors"]:
            yield f"{node['class_type']}: {error['message']}: {error['details']}"
    if not answer.get("node_errors"):
        error = answer["error"]
        yield f"ComfyUI refuses the graph: {error['message']}: {error['details']}"


def _raise_for_failure(entry: dict) -> None:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            raise ComfyError(f"{data['node_type']}: {data['exception_message'].strip()} ({data['exception_type']})")
        if kind == "execution_interrupted":
            raise ComfyError(f"{data['node_type']}: the run was interrupted")


def output_files(entry: dict) -> Iterator[dict]:
    """Every {"filename", "subfolder", "type"} that the nodes of a history entry report."""
    for node in entry["outputs"].values():
        for values in node.values():
            yield from (value for value in values if isinstance(value, dict) and "filename" in value)
