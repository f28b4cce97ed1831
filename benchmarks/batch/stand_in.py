"""A stand-in for ComfyUI, for tests of lucid_batch: a real process with the part of the HTTP API that the
client uses. It computes nothing: a step sleeps, and a "splat" is a text.

Run as the launcher of lucid_batch: `python stand_in.py COMFYUI --base-directory DIR --output-directory DIR
--port N ...`. The prompt's words "poison", "hang" and "crash" make a run fail, hang and end the process;
"nothing" saves no file. Each run that ends is a line of the file STAND_IN_JOURNAL; a step takes
STAND_IN_STEP_S seconds.
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

from aiohttp import web

CHECKPOINT_STEPS = 5
KNOWN = ("LucidPrompt", "LucidPointCloud", "LucidISM", "LucidCameras", "LucidSave", "PreviewGaussianSplat")
STEPS = {"required": {"steps": ["INT", {"min": 1, "max": 1000}]}}
PRESETS = [{"key": name, "inputs": STEPS} for name in ("official", "cpu")]


class StandIn:
    def __init__(self, base: Path, output: Path) -> None:
        self.base, self.output = base, output
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.history: dict[str, dict] = {}
        self.running: list = []
        self.cancelled: set[str] = set()
        self.count = 0
        self.lock = asyncio.Lock()
        self.tasks: set[asyncio.Task] = set()

    def info(self, kind: str) -> dict:
        if kind == "LucidDream":
            required = {"preset": ["COMFY_DYNAMICCOMBO_V3", {"options": PRESETS}]}
            return {"input": {"required": required, "optional": {"resume": ["STRING", {}]}}}
        if kind == "CheckpointLoaderSimple":
            folder = self.base / "models" / "checkpoints"
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
            return {"input": {"required": {"ckpt_name": [names, {}]}}}
        return {"input": {}} if kind in KNOWN else {}

    async def queue(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.count += 1
        name = f"prompt-{os.getpid()}-{self.count}"
        task = asyncio.create_task(self.run(name, asked["prompt"], asked["client_id"]))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return web.json_response({"prompt_id": name, "node_errors": {}})

    async def run(self, name: str, graph: dict, client: str) -> None:
        async with self.lock:
            self.running = [[0, name, graph, {}, []]]
            begun = time.time()
            messages = [["execution_start", {"timestamp": begun * 1000}]]
            outputs = {}
            try:
                outputs = await self.nodes(name, graph, client)
                messages.append(["execution_success", {"timestamp": time.time() * 1000}])
            except asyncio.CancelledError:
                raise
            except KeyError:
                messages.append(["execution_interrupted", {"node_type": "LucidDream"}])
            except ValueError as error:
                failed = {"node_type": "LucidDream", "exception_type": "ValueError"}
                messages.append(["execution_error", {**failed, "exception_message": str(error)}])
            self.history[name] = {"outputs": outputs, "status": {"messages": messages}}
            self.running = []
            await self.send(client, "executing", {"node": None, "prompt_id": name})

    async def send(self, client: str, kind: str, data: dict) -> None:
        if client in self.sockets and not self.sockets[client].closed:
            await self.sockets[client].send_json({"type": kind, "data": data})

    async def nodes(self, name: str, graph: dict, client: str) -> dict:
        by_kind = {node["class_type"]: (number, node["inputs"]) for number, node in graph.items()}
        (dream, inputs), text = by_kind["LucidDream"], by_kind["LucidPrompt"][1]["text"]
        begun = time.time()
        await self.send(client, "executing", {"node": dream, "prompt_id": name})
        if "poison" in text:
            raise ValueError("this prompt always fails")
        if "hang" in text:
            await asyncio.sleep(3600)
        if "crash" in text:
            os._exit(139)
        first, steps, seed = 0, inputs["preset.steps"], inputs["seed"]
        if inputs["resume"]:
            saved = json.loads((self.output / inputs["resume"]).read_text())
            if saved["run"] != [text, seed]:
                raise ValueError("the checkpoint is of another run")
            first = saved["step"]
        folder = self.output / "lucid"
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + len(list(folder.glob("run_*")))
        checkpoint = folder / f"run_{number:05}_.safetensors"
        for step in range(first + 1, steps + 1):
            await asyncio.sleep(float(os.environ.get("STAND_IN_STEP_S", "0.02")))
            if step % CHECKPOINT_STEPS == 0 or name in self.cancelled:
                part = checkpoint.with_suffix(".part.safetensors")
                part.write_text(json.dumps({"run": [text, seed], "step": step}))
                os.replace(part, checkpoint)
            if name in self.cancelled:
                raise KeyError(name)
            data = {"node": dream, "prompt_id": name, "value": step, "max": steps}
            await self.send(client, "progress", data)
        splat = folder / f"splat_{self.count:05}_.ply"
        splat.write_text(f"{text} {seed} {steps}")
        with open(os.environ["STAND_IN_JOURNAL"], "a") as journal:
            line = {"text": text, "seed": seed, "from": first, "begun": begun, "ended": time.time()}
            journal.write(json.dumps(line) + "\n")
        if "nothing" in text:
            return {}
        file = {"filename": splat.name, "subfolder": "lucid", "type": "output"}
        return {"7": {"3d": [file]}, dream: {"lucid": [{"steps": steps, "splats": 1}]}}

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets[request.query["clientId"]] = socket
        async for _ in socket:
            pass
        return socket

    def app(self) -> web.Application:
        app = web.Application()
        json_of = lambda make: lambda request: answer(make(request))

        async def answer(value):
            return web.json_response(value)

        async def view(request):
            return web.FileResponse(self.output / request.query["subfolder"] / request.query["filename"])

        async def cancel(request):
            self.cancelled.add(request.match_info["name"])
            return web.json_response({})

        one = lambda request: self.info(request.match_info["kind"])
        app.add_routes(
            [
                web.get("/system_stats", json_of(lambda request: {"system": "a stand-in for ComfyUI"})),
                web.get(
                    "/object_info/{kind}",
                    json_of(lambda r: {r.match_info["kind"]: found} if (found := one(r)) else {}),
                ),
                web.get("/queue", json_of(lambda r: {"queue_running": self.running, "queue_pending": []})),
                web.get(
                    "/history/{name}",
                    json_of(lambda r: {r.match_info["name"]: self.history[r.match_info["name"]]}),
                ),
                web.get("/ws", self.socket),
                web.get("/view", view),
                web.post("/prompt", self.queue),
                web.post("/api/jobs/{name}/cancel", cancel),
            ]
        )
        return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("comfyui")
    for name in ("--base-directory", "--output-directory"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--port", type=int)
    options, _ = parser.parse_known_args()
    served = StandIn(options.base_directory, options.output_directory)
    web.run_app(served.app(), host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
