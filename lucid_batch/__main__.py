"""Runs a workflow once for each row of a file, on one or many ComfyUI servers, by Ray."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from . import Mistake
from .driver import Options, default_comfyui, run

MISTAKE = 2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m lucid_batch", description=__doc__)
    add = made.add_argument
    add("workflow", help="a workflow in API format")
    add("jobs", type=Path, help="a .csv or .jsonl file; its columns are NODE.INPUT, such as LucidPrompt.text")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    help = 'a Ray cluster: "auto", HOST:PORT or ray://HOST:PORT (default: a Ray on this machine alone)'
    add("--address", default="local", help=help)
    help = "number of workers (default: one for each GPU, or for each machine without a GPU)"
    add("--workers", type=int, default=0, metavar="N", help=help)
    help = "addresses of running ComfyUIs, separated by commas, in place of those that the workers start"
    add("--servers", default="", metavar="A,B", help=help)
    help = "ComfyUI's folder on the workers' machines (default: COMFYUI_PATH, or the one around this pack)"
    add("--comfyui", default="", metavar="DIR", help=help)
    add("--base", default="", metavar="DIR", help="its base directory (default: its folder)")
    add(
        "--python", default=sys.executable, metavar="FILE", help="the Python that runs it (default: this one)"
    )
    add("--launcher", default="", metavar="FILE", help="a script to run in place of its main.py")
    help = "arguments of its main.py, such as --flags=--lowvram"
    add("--flags", default="", metavar="WORDS", help=help)
    help = "a folder like ComfyUI/models, beside the one of the base directory; may be repeated"
    add("--models", action="append", default=[], metavar="DIR", help=help)
    add("--tries", type=int, default=3, metavar="N", help="attempts at a job (default: %(default)s)")
    help = "time after which a server that sends nothing counts as hanging (default: %(default)s)"
    add("--hang-minutes", type=float, default=15.0, metavar="M", help=help)
    help = "a row with a bad value stops everything, before anything is run, or is skipped (default: stop)"
    add("--on-bad-row", choices=("stop", "skip"), default="stop", help=help)
    add("--dry-run", action="store_true", help="print the plan and end")
    return made


def absolute(text: str) -> str:
    """A path made absolute, for processes that run in another folder. A command such as python3 stays as it
    is, and so do symbolic links: the Python of a virtual environment is one.
    """
    return str(Path(text).absolute()) if text and (os.path.dirname(text) or Path(text).exists()) else text


def options_of(words: list[str]) -> Options:
    given = parser().parse_args(words)
    servers = tuple(filter(None, (one.strip().rstrip("/") for one in given.servers.split(","))))
    if given.workers < 0 or given.tries < 1 or given.hang_minutes <= 0:
        raise Mistake("--workers must be 0 or more, --tries 1 or more, --hang-minutes more than 0")
    if servers and given.workers not in (0, len(servers)):
        raise Mistake(f"there is one worker for each of the {len(servers)} --servers; leave out --workers")
    return Options(
        given.workflow,
        given.jobs,
        given.out,
        given.address,
        given.workers,
        servers,
        absolute(given.comfyui or default_comfyui()),
        absolute(given.base),
        absolute(given.python),
        absolute(given.launcher),
        tuple(shlex.split(given.flags)),
        tuple(map(absolute, given.models)),
        given.tries,
        given.hang_minutes,
        given.on_bad_row == "skip",
        given.dry_run,
        tuple(words),
    )


def main(words: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a console of Windows
    try:
        return run(options_of(sys.argv[1:] if words is None else words))
    except Mistake as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
