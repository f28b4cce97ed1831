"""benchmarks/device.sh on a CPU: every part runs, and one that fails does not stop the next."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def lines_of(out, host_path, *arguments):
    command = [sys.executable, "-m", "benchmarks.device", "--cpu", "--out", str(out), *arguments]
    environment = os.environ | {"COMFYUI_PATH": str(host_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return {line["part"]: line for line in map(json.loads, done.stdout.splitlines())}


def test_the_parts_run_on_a_cpu(host_path, tmp_path):
    lines = lines_of(tmp_path, host_path, "--parts", "compile", "checkpoint", "tests", "host", "split")
    assert list(lines) == ["checkpoint", "compile", "tests", "host", "split"]
    assert all(line["ok"] for line in lines.values()), lines
    assert lines["host"]["resumed"]["steps"] == 4 * lines["host"]["run"]["steps"]
    assert [row["views"] for row in lines["split"]["rows"]] == [1, 2]
    assert all(
        row["model_s"] > 0 and row["vae_s"] > 0 and row["render_s"] > 0 for row in lines["split"]["rows"]
    )


def test_a_part_that_fails_says_why_and_does_not_stop_the_next(tmp_path):
    lines = lines_of(tmp_path, tmp_path, "--parts", "split", "compile")
    assert not lines["split"]["ok"] and "is no ComfyUI folder" in lines["split"]["error"]
    assert lines["compile"]["ok"]
