"""An environment of its own for each tool that a benchmark is held against, made once, in `.bench/`."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[1] / ".bench"


def environment(name: str, *requirements: str) -> Path:
    """The Python of the environment `name`, which has `requirements` beside our torch and transformers."""
    folder = ROOT / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing {', '.join(requirements)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pins = [f"torch=={torch.__version__.split('+')[0]}", f"transformers=={transformers.__version__}", *requirements]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
        (folder / "ready").touch()
    return python
