#!/usr/bin/env python3
"""The way in: sets up a virtual environment and a ComfyUI beside this checkout, then runs the demo, the tests or a server.

    python dev.py demo "a red mushroom"
    python dev.py test
    python dev.py serve

Needs Python 3.10+ and a package registry. Everything it makes lies in .venv, .host and output; remove them to start anew.
An interrupted set-up is completed by the next run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from demo.base import PRIOR, find_checkpoint, link_checkpoint, prepare_base
from demo.chromium import prepare_chromium
from demo.fetch import fetch_host, find_host
from demo.tree import Tree, say
from demo.venv import install_packages, prepare_venv


@dataclass(frozen=True)
class Setup:
    tree: Tree
    comfyui: Path
    checkpoint: str  # the host's name of it


def set_up(tree: Tree, comfyui: str | None = None, checkpoint: str | None = None) -> Setup:
    """Everything a command needs; what is there already is only looked at."""
    file = find_checkpoint(checkpoint)  # mistakes of the user first: the rest takes minutes
    host = find_host(tree, comfyui or os.environ.get("COMFYUI_PATH"))
    prepare_venv(tree)
    host = host or fetch_host(tree)
    install_packages(tree, host)
    prepare_base(tree, tree.python)
    return Setup(tree, host, link_checkpoint(tree, file) if file else PRIOR)


def hand_over(setup: Setup, arguments: list) -> int:
    """Run `python ARGUMENTS` in the .venv and return its exit code; it handles Ctrl-C itself, and we wait for that."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"COMFYUI_PATH": str(setup.comfyui), "NUMBA_CACHE_DIR": str(setup.tree.cache / "numba")}
    command = [str(part) for part in (setup.tree.python, *arguments)]
    process = subprocess.Popen(command, cwd=setup.tree.root, env=environment)
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue
        if code < 0:  # it had no chance to say so itself
            say(f"error: stopped by signal {-code} ({signal.strsignal(-code)})")
        return code if code >= 0 else 128 - code


def demo(tree: Tree, options: argparse.Namespace) -> int:
    if not options.prompt.strip():
        raise ValueError('the prompt is empty; say what to make, e.g. "a red mushroom"')
    setup = set_up(tree, options.comfyui, options.checkpoint)
    arguments = ["-m", "demo", options.prompt, "--base", tree.base, "--checkpoint", setup.checkpoint, "--port", options.port]
    given = {"--steps": options.steps, "--seed": options.seed, "--out": options.out and Path(options.out).absolute()}
    for name, value in given.items():
        arguments += [name, value] if value is not None else []
    return hand_over(setup, [*arguments, "--comfyui", setup.comfyui])


def test(tree: Tree, options: argparse.Namespace) -> int:
    setup = set_up(tree, options.comfyui)
    prepare_chromium()
    paths = [] if any((tree.root / word.split("::")[0]).exists() for word in options.pytest) else ["tests"]
    return hand_over(setup, ["-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", ".", *options.pytest, *paths])


def serve(tree: Tree, options: argparse.Namespace) -> int:
    setup = set_up(tree, options.comfyui, options.checkpoint)
    say(f"The checkpoint to load: {setup.checkpoint}")
    return hand_over(setup, ["-m", "demo.host", "--comfyui", setup.comfyui, "--base", tree.base, "--port", options.port])


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    comfyui = argparse.ArgumentParser(add_help=False)
    comfyui.add_argument("--comfyui", metavar="DIR", help="your ComfyUI folder (default: $COMFYUI_PATH, else found or fetched)")
    host = argparse.ArgumentParser(add_help=False, parents=[comfyui])
    host.add_argument("--checkpoint", metavar="FILE", help="your Stable Diffusion 1.5 file (default: the tiny demo prior)")

    help = "distil a splat from a text, through a real ComfyUI"
    command = commands.add_parser("demo", parents=[host], help=help, description=help)
    command.add_argument("prompt", help='e.g. "a red mushroom"; demo/README.md lists what the demo prior knows')
    command.add_argument("--steps", type=int, metavar="N", help="optimisation steps (default: the workflow's)")
    command.add_argument("--seed", type=int, metavar="N", help="default: the workflow's")
    command.add_argument("--out", metavar="DIR", help="folder for the results (default: output/demo/<prompt>)")
    command.add_argument("--port", type=int, metavar="N", default=0, help="port of the server (default: a free one)")
    command.set_defaults(command=demo)

    help = "run the tests; further arguments go to pytest"
    command = commands.add_parser("test", parents=[comfyui], help=help, description=help)
    command.set_defaults(command=test)

    help = "start ComfyUI with this pack for use in a browser"
    command = commands.add_parser("serve", parents=[host], help=help, description=help)
    command.add_argument("--port", type=int, metavar="N", default=8188, help="default: %(default)s")
    command.set_defaults(command=serve)
    return top


def main(words: list[str]) -> int:
    options, rest = parser().parse_known_args(words)
    if rest and options.command is not test:
        parser().error(f"unknown arguments: {' '.join(rest)}")
    options.pytest = rest
    try:
        return options.command(Tree(Path(__file__).resolve().parent), options)
    except (ValueError, RuntimeError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted; run the same command again to go on.")
        return 130


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f"error: Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    sys.exit(main(sys.argv[1:]))
