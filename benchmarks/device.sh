#!/usr/bin/env bash
# Measures the pack on a machine with a GPU and no network, in at most 8 minutes: see benchmarks/device/__init__.py.
#
#   bash benchmarks/device.sh                  on this machine, once `python dev.py test` has set it up
#   bash benchmarks/device.sh --cpu            the same parts on a CPU, at toy sizes
#   python3 -m benchmarks.device.bundle pack --version 3.12 --to DIR
#                                              packs ComfyUI and the wheels for another machine, whose Python is 3.12
#   bash benchmarks/device.sh --bundle DIR     runs there: needs that folder, and a python3 that has torch
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
if [ "${1:-}" = --bundle ]; then
    folder=$(mktemp -d)
    python3 -m benchmarks.device.bundle unpack "$2" "$folder"
    shift 2
    python="$folder/venv/bin/python"
    export COMFYUI_PATH="$folder/ComfyUI"
fi
[ -x "$python" ] || python=python3
exec "$python" -m benchmarks.device "$@"
