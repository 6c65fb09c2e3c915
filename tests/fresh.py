"""Code in a process of its own that need not import torch: it is forked from one that has, and has done no more."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]

IMPORTED = [
    *("torch", "torchvision", "timm", "transformers", "transformers.modeling_utils", "transformers.image_utils"),
    *("torch._dynamo", "torch._inductor", "torch.export", "torch.onnx", "torch.utils.flop_counter"),
    *("matplotlib.pyplot", "numpy", "onnxscript", "optuna", "sklearn.datasets", "skimage.data", "skimage.io"),
    *("sklearn.preprocessing", "torchvision.transforms.v2", "rich.table"),
]
"""What many pages import; what is missing here costs time and nothing else. Nothing of tokensieve: a page shows how.

Nor what starts a thread as it is imported (onnxruntime, pyarrow): a forked process would wait for it without end.
"""

SERVER = "from tests import fresh; code = fresh.forked(); exec(compile(code, '<string>', 'exec'), globals())"


def run(code: str) -> subprocess.CompletedProcess[str]:
    """As `python -c code` in the project's folder, with one thread."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        print(json.dumps([code, str(out), str(err)]), file=server.stdin, flush=True)
        returned = int(server.stdout.readline())
        return subprocess.CompletedProcess(["python", "-c", code], returned, out.read_text(), err.read_text())


@cache
def _server() -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command, pipe = [sys.executable, "-c", SERVER], subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe)
    assert server.stdin is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return server


def forked() -> str:
    """Fork for each line that is read, and write what that process gave; returns the code, in the forked process."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    tasks = Path("/proc/self/task")
    if tasks.is_dir() and len(list(tasks.iterdir())) > 1:
        sys.exit("A module of tests.fresh.IMPORTED starts a thread, for which forked processes would wait without end.")
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code, *files = json.loads(line)
            for number, file in enumerate([os.devnull, *files]):
                os.dup2(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), number)
            return code
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)
