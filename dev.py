#!/usr/bin/env python3
"""Developer entry point: sets up a virtual environment and ComfyUI, then runs the demo, the tests or a
server.

    python dev.py demo "a red mushroom"
    python dev.py demo --image picture.png
    python dev.py test            (python dev.py test unit: without ComfyUI, saves minutes; test types: mypy)
    python dev.py serve
    python dev.py batch workflows/api/text_to_splat.json jobs.csv --out DIR  (what follows: to lucid_batch)
    python dev.py release         (builds and checks the archive for ComfyUI's registry)

Needs Python 3.10+ and a package registry. All files are created in .venv, .host and output; remove these
folders to start again. The next run completes an interrupted set-up.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from devtools.base import CAMERA, PRIOR, find_checkpoint, link_checkpoint, prepare_base
from devtools.chromium import prepare_chromium
from devtools.fetch import fetch_host, find_host
from devtools.tree import Tree, say
from devtools.venv import install_packages, prepare_venv

LAYERS = ("unit", "host", "browser", "gpu", "benchmarks")  # folders of tests; unit needs no ComfyUI
TYPES = "types"  # what is tested with mypy alone
# Two processes of one thread each are faster than one of two threads. Beside other work much faster: threads
# wait for each other.
PARALLEL = ["-n", "2", "--dist", "loadfile"]


@dataclass(frozen=True)
class Setup:
    tree: Tree
    comfyui: Path
    checkpoint: str  # its name in ComfyUI


def set_up(
    tree: Tree, comfyui: str | None = None, checkpoint: str | None = None, default: str = PRIOR
) -> Setup:
    """Prepare everything that a command needs. What already exists is only checked.

    default: the checkpoint's name in ComfyUI where no file is given.
    """
    file = find_checkpoint(checkpoint)  # first, to report mistakes early: the rest takes minutes
    host = find_host(tree, comfyui or os.environ.get("COMFYUI_PATH"))
    prepare_venv(tree)
    host = host or fetch_host(tree)
    install_packages(tree, host)
    prepare_base(tree, tree.python)
    return Setup(tree, host, link_checkpoint(tree, file) if file else default)


def hand_over(tree: Tree, comfyui: Path | None, arguments: list, threads: int | None = None) -> int:
    """Run `python ARGUMENTS` in the .venv and return its exit code. The process handles Ctrl-C itself; we
    wait until it has ended. threads: of torch, unless OMP_NUM_THREADS says otherwise; None = its own number.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment |= {
        "NUMBA_CACHE_DIR": str(tree.cache / "numba"),
        **({"COMFYUI_PATH": str(comfyui)} if comfyui else {}),
    }
    command = [str(part) for part in (tree.python, *arguments)]
    process = subprocess.Popen(command, cwd=tree.root, env=environment)
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue
        if code < 0:  # a signal ended it before it could print an error
            say(f"error: stopped by signal {-code} ({signal.strsignal(-code)})")
        return code if code >= 0 else 128 - code


def demo(tree: Tree, options: argparse.Namespace) -> int:
    if not options.prompt.strip() and not options.image:
        raise ValueError(
            'the prompt is empty; describe an object, e.g. "a red mushroom", or give --image FILE'
        )
    if options.prompt and options.image:
        raise ValueError(
            "give a prompt or --image, not both; the workflow image_and_text_to_splat takes both"
        )
    if options.image and not Path(options.image).is_file():
        raise ValueError(f"there is no file {options.image}; --image takes the path of a picture")
    setup = set_up(tree, options.comfyui, options.checkpoint, CAMERA if options.image else PRIOR)
    what = ["--image", Path(options.image).absolute()] if options.image else [options.prompt]
    arguments = [
        "-m",
        "demo",
        *what,
        "--base",
        tree.base,
        "--checkpoint",
        setup.checkpoint,
        "--port",
        options.port,
    ]
    given = {
        "--elevation": options.elevation,
        "--azimuth": options.azimuth,
        "--steps": options.steps,
        "--seed": options.seed,
        "--out": options.out and Path(options.out).absolute(),
    }
    for name, value in given.items():
        arguments += [name, value] if value is not None else []
    return hand_over(tree, setup.comfyui, [*arguments, "--comfyui", setup.comfyui])


def check_types(tree: Tree) -> int:
    """Run mypy with the settings of pyproject.toml and return its exit code."""
    return hand_over(tree, None, ["-m", "mypy"])


def test(tree: Tree, options: argparse.Namespace) -> int:
    if options.rest == [TYPES]:
        prepare_venv(tree)
        install_packages(tree, None)
        return check_types(tree)
    first = next((at for at, word in enumerate(options.rest) if word.startswith("-")), len(options.rest))
    paths = [f"tests/{word}" if word in LAYERS else word for word in options.rest[:first]]
    words = [*paths, *options.rest[first:]]  # what follows the first option is pytest's
    comfyui = None
    if paths and all(Path(path).parts[:2] == ("tests", "unit") for path in paths):
        prepare_venv(tree)
        install_packages(tree, None)
    else:
        comfyui = set_up(tree, options.comfyui).comfyui
        prepare_chromium()
    if not words and (code := check_types(tree)):
        return code
    whole = [] if paths else ["tests"]
    parallel = PARALLEL if all((tree.root / path).is_dir() for path in paths) else []
    command = ["-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", ".", "--durations=20"]
    return hand_over(tree, comfyui, [*command, *parallel, *words, *whole], threads=1)


def serve(tree: Tree, options: argparse.Namespace) -> int:
    setup = set_up(tree, options.comfyui, options.checkpoint)
    say(f"The checkpoint to load: {setup.checkpoint}")
    return hand_over(
        tree,
        setup.comfyui,
        ["-m", "devtools.host", "--comfyui", setup.comfyui, "--base", tree.base, "--port", options.port],
    )


def batch(tree: Tree, options: argparse.Namespace) -> int:
    """Run lucid_batch on ComfyUIs with the demo's checkpoints."""
    setup = set_up(tree, options.comfyui)
    words = [options.workflow, Path(options.jobs).absolute(), "--out", Path(options.out).absolute()]
    host = ["--comfyui", setup.comfyui, "--base", tree.base, "--launcher", tree.root / "devtools/launch.py"]
    return hand_over(tree, setup.comfyui, ["-m", "lucid_batch", *words, *host, *options.rest])


def release(tree: Tree, options: argparse.Namespace) -> int:
    setup = set_up(tree, options.comfyui)
    return hand_over(tree, setup.comfyui, ["-m", "devtools.release", "--comfyui", setup.comfyui])


def add_demo_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "prompt",
        nargs="?",
        default="",
        help='e.g. "a red mushroom"; demo/README.md lists what the demo prior knows',
    )
    command.add_argument(
        "--image",
        metavar="FILE",
        help="in place of a prompt: a picture of an object with a transparent background",
    )
    for angle in ("elevation", "azimuth"):
        command.add_argument(
            f"--{angle}", type=float, metavar="DEG", help=f"{angle} of the picture's camera (default: 0)"
        )
    command.add_argument(
        "--steps", type=int, metavar="N", help="optimisation steps (default: the workflow's)"
    )
    command.add_argument("--seed", type=int, metavar="N", help="default: the workflow's")
    command.add_argument(
        "--out", metavar="DIR", help="folder for the results (default: output/demo/<prompt or picture>)"
    )
    command.add_argument(
        "--port", type=int, metavar="N", default=0, help="port of the server (default: a free one)"
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    comfyui = argparse.ArgumentParser(add_help=False)
    comfyui.add_argument(
        "--comfyui",
        metavar="DIR",
        help="your ComfyUI folder (default: $COMFYUI_PATH, else found or downloaded)",
    )
    host = argparse.ArgumentParser(add_help=False, parents=[comfyui])
    host.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="your Stable Diffusion 1.5 file, or with --image your Stable Zero123 (default: the demo's own)",
    )

    help = "make a splat from a prompt or a picture, with a real ComfyUI"
    command = commands.add_parser("demo", parents=[host], help=help, description=help)
    add_demo_arguments(command)
    command.set_defaults(command=demo)

    help = f"run all tests, mypy ({TYPES}), or one layer ({', '.join(LAYERS)}); the rest goes to pytest"
    command = commands.add_parser("test", parents=[comfyui], help=help, description=help)
    command.set_defaults(command=test)

    help = "start ComfyUI with this pack for use in a browser"
    command = commands.add_parser("serve", parents=[host], help=help, description=help)
    command.add_argument("--port", type=int, metavar="N", default=8188, help="default: %(default)s")
    command.set_defaults(command=serve)

    help = "run a workflow once for each row of a file (python -m lucid_batch), with the demo's models"
    command = commands.add_parser("batch", parents=[comfyui], help=help, description=help)
    command.add_argument("workflow", help="one of workflows/api, or a path")
    command.add_argument("jobs", help="a .csv or .jsonl file; its columns are NODE.INPUT")
    command.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    command.set_defaults(command=batch)

    help = "build the archive for ComfyUI's registry, check it and load it in a fresh ComfyUI"
    command = commands.add_parser("release", parents=[comfyui], help=help, description=help)
    command.set_defaults(command=release)
    return top


def main(words: list[str]) -> int:
    options, rest = parser().parse_known_args(words)
    if rest and options.command not in (test, batch):
        parser().error(f"unknown arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        return options.command(Tree(Path(__file__).resolve().parent), options)
    except (ValueError, RuntimeError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted; run the same command again to continue.")
        return 130


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f"error: Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    sys.exit(main(sys.argv[1:]))
