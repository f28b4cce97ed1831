"""A Chromium for the tests of the web page: an installed one, or Debian's package. Standard library only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .tree import run, say

COMMANDS = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
]
ELSEWHERE = [  # paths on Windows and macOS
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
]
APT = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
HOW_TO = "install Chromium (`sudo apt-get install chromium`), Chrome or Edge"


def find_chromium() -> str | None:
    """The path of an installed Chromium, Chrome or Edge; None if there is none."""
    return next(filter(None, map(shutil.which, COMMANDS)), None) or next(
        (p for p in ELSEWHERE if Path(p).is_file()), None
    )


def prepare_chromium() -> None:
    """Install Debian's Chromium if there is none and we are root. Otherwise print that its tests will be
    skipped. Never raises an error.
    """
    if find_chromium() is None and shutil.which("apt-get") and getattr(os, "geteuid", lambda: 1)() == 0:
        say("Installing Chromium ...")
        try:
            run([*APT, "update"])
            run([*APT, "install", "-y", "--no-install-recommends", "chromium"])
        except RuntimeError as error:
            say(str(error))
    if find_chromium() is None:
        say(f"The tests of the web page will be skipped: {HOW_TO} to run them.")
