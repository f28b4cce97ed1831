"""Set-up steps of dev.py: the virtual environment, ComfyUI and its base directory, Chromium, a server."""
