"""Checks and measurements on a GPU, in parts: the tests, the real host with a checkpoint of SD 1.5's size,
the time of each part of a step, the renderer's backends, and training of the demo prior.

Each part runs in its own process and prints one line of JSON: {"part", "ok", "seconds", ...}. If a part
fails, "error" has the reason, and the next part still runs. Logs are in output/benchmarks/device.
"""
