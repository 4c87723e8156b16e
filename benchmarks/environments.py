"""An environment of its own for each tool that a benchmark is held against, made once, in `.bench/`."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[1] / ".bench"
PEERS = Path(__file__).parent / "peers"


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


class Peer:
    """A script of `peers/` that answers lines, in an environment and a process of its own."""

    def __init__(self, python: Path, script: str, *arguments: str) -> None:
        command = [python, PEERS / script, *arguments, str(torch.get_num_threads())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **content: Any) -> dict[str, Any]:
        """The answer to a line."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self.process.stdin.write(json.dumps(content) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
