"""The pack on a GPU, part by part: its tests, the real host with a checkpoint of SD 1.5's size, what a step spends where, the
backends of the renderer, and training of the demo prior.

Each part is a process of its own and prints one line of JSON: {"part", "ok", "seconds", ...}. A part that fails says why in
"error" and does not stop the next. Logs lie in output/benchmarks/device.
"""
