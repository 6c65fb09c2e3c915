"""The example's service under load, dense and sieved -> results/serve.csv: requests a second, p50, p99.

    python benchmarks/serve.py                                    # DeiT-Tiny with real weights of ../shared
    python benchmarks/serve.py --model vit_base_patch16_224 --recipe "papr(keep=0.5)"      # random weights

The service runs as a user starts it, `python service.py`, in a process of its own; the clients in this one. Dense and
sieved are asked by turns at each number of clients. A request is a whole one: a photograph's JPEG over HTTP, decoded,
resized, classified.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from results import ROOT, SHARED, update

sys.path.insert(0, str(ROOT / "examples" / "serve"))
from load import CLIENTS, Load, measure_all

SERVE = ROOT / "examples" / "serve"
PHOTOGRAPHS = SHARED / "data" / "imagenet_val_a"
WEIGHTS = {"deit_tiny_patch16_224": SHARED / "weights" / "deit_tiny_patch16_224.safetensors"}
PATIENCE = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command_of(args: argparse.Namespace, port: int) -> list[str]:
    words = ["--model", args.model, "--recipe", args.recipe, "--device", "cpu", "--threads", str(args.threads)]
    words += ["--batch", str(args.batch), "--wait", str(args.wait), "--port", str(port), "--decoders", "1"]
    weights = WEIGHTS.get(args.model)
    words += ["--weights", str(weights)] if weights else [] if args.pretrained else ["--no-pretrained"]
    return [sys.executable, "service.py", *words]


def wait_for(process: subprocess.Popen[bytes], url: str) -> dict[str, Any]:
    """What the service says of itself, as soon as it answers."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            return httpx.get(url, timeout=60).raise_for_status().json()
        except httpx.TransportError:
            time.sleep(0.2)
    sys.exit("the service does not answer")


def rows_of(args: argparse.Namespace, facts: dict[str, Any], loads: list[Load]) -> list[dict[str, Any]]:
    found = []
    for load in loads:
        dense = next(each for each in loads if (each.variant, each.clients) == ("dense", load.clients))
        found.append(
            {
                "model": args.model,
                "recipe": args.recipe,
                "weights": "file" if args.model in WEIGHTS else "library" if args.pretrained else "random",
                "largest_batch": args.batch,
                "wait_ms": args.wait,
                "seconds": args.seconds,
                **asdict(load),
                "ratio": load.per_second / dense.per_second,
                "macs_ratio": facts["macs"]["ratio"],
                "threads": args.threads,
            }
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--recipe", default="guarded(r=8) + readout()")
    parser.add_argument(
        "--pretrained", action="store_true", help="of the library; else random where ../shared has none"
    )
    parser.add_argument("--pictures", type=Path, default=PHOTOGRAPHS, help="a folder; 32 of them are sent in turn")
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients and each variant")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--wait", type=float, default=5.0, help="milliseconds")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    files = sorted(path for path in args.pictures.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    pictures = [path.read_bytes() for path in files[:: max(1, len(files) // 32)][:32]]
    if not pictures:
        sys.exit(f"{args.pictures} holds no pictures")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command_of(args, port), cwd=SERVE, stdout=log, stderr=log)
        try:
            facts = wait_for(process, url)
            clients = [int(count) for count in args.clients.split(",")]
            loads = asyncio.run(measure_all(url, ("dense", "sieved"), clients, args.seconds, pictures))
        finally:
            process.terminate()
            process.wait()
            log.seek(0)
            sys.stderr.write(log.read().decode())
    update("serve.csv", rows_of(args, facts, loads), "model", "recipe", "variant", "clients")
    return int(any(load.failed for load in loads))


if __name__ == "__main__":
    sys.exit(main())
