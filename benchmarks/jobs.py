"""Jobs that are killed and go on, and how fast they are beside the model alone -> results/jobs.csv, jobs_speed.csv.

    python benchmarks/jobs.py kill                    # 1,500 photographs, DeiT-Tiny, kill -9 five times
    python benchmarks/jobs.py kill --engine ray       # two actors on a local Ray, one of them killed
    python benchmarks/jobs.py speed                   # ViT-B at papr(keep=0.5), and the bundled nano model
    python benchmarks/jobs.py broken                  # twelve kinds of broken pictures -> results/jobs_broken.csv

Reads imagenette_val.tar of ../shared, or --images.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet as parquet
import torch

from results import ROOT, SHARED, update, write

sys.path.insert(0, str(ROOT))  # the broken pictures are shared with the tests
from tests.broken_pictures import SKIPPED, broken_folder
from tokensieve import ModelSpec
from tokensieve.jobs import job_of, run
from tokensieve.jobs.reading import Reader
from tokensieve.jobs.shards import open_work

DEIT = SHARED / "weights" / "deit_tiny_patch16_224.safetensors"
PATIENCE = 3600.0


def rows_of(out: Path) -> pyarrow.Table:
    """All rows of a job in the order of its files."""
    return pyarrow.concat_tables([parquet.read_table(file) for file in sorted((out / "rows").glob("*.parquet"))])


def begun(out: Path) -> int:
    """How often a job has come to read its first item."""
    log = out / "log.txt"
    return log.read_text().count("  begun: ") if log.is_file() else 0


def command_of(args: argparse.Namespace, out: Path) -> list[str]:
    weights = ["--weights", str(args.weights)] if args.weights else []
    words = ["run", str(args.images), "--out", str(out), "--model", args.model, *weights, "--recipe", args.recipe]
    words += ["--batch", str(args.batch), "--shard", str(args.shard), "--workers", str(args.workers)]
    words += ["--threads", str(args.threads), *(["--limit", str(args.limit)] if args.limit else [])]
    if args.engine == "ray":
        words += ["--engine", "ray", "--actors", "2", "--actor-cpus", "1"]
    return [sys.executable, "-m", "tokensieve", *words]


def wait_for_rows(process: subprocess.Popen[bytes], out: Path, times: int, files: int = 0) -> None:
    """Until a job reads its first item, for the so-manieth time, and so many files of rows are there."""
    until = time.monotonic() + PATIENCE
    while (begun(out) < times or len(list(out.glob("rows/*.parquet"))) < files) and process.poll() is None:
        if time.monotonic() > until:
            sys.exit("the job did not begin")
        time.sleep(0.02)


def kill(args: argparse.Namespace) -> None:
    """One job that nobody disturbs, and one that is killed; their rows compared."""
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        alone, out = Path(scratch) / "alone", Path(scratch) / "killed"
        plain = argparse.Namespace(**{**vars(args), "engine": "local"})
        process = subprocess.Popen(command_of(plain, alone))
        wait_for_rows(process, alone, 1)
        before = time.perf_counter()
        if process.wait():
            sys.exit("the job that nobody disturbs failed")
        whole = time.perf_counter() - before  # from its first item on, as the kills are timed
        kills, files_there = 0, []
        if args.engine == "ray":
            kills = disturb_ray(args, out, whole, rng)
        else:
            shards = len(list((alone / "rows").iterdir()))
            for number, files in enumerate(sorted(rng.randrange(shards) for _ in range(args.kills))):
                process = subprocess.Popen(command_of(args, out))
                wait_for_rows(process, out, number + 1, files)
                time.sleep(rng.uniform(0, whole / shards))
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
                process.wait()
                files_there.append(len(list((out / "rows").glob("*.parquet"))))
                print(f"kill {number + 1}: {files_there[-1]} files of rows are there", flush=True)
            subprocess.run(command_of(args, out), check=True)
        update("jobs.csv", [compared(args, alone, out, kills, files_there)], "engine", "model")


def disturb_ray(args: argparse.Namespace, out: Path, whole: float, rng: random.Random) -> int:
    """Kill one actor at a random moment of a job on Ray."""
    process = subprocess.Popen(command_of(args, out))
    until = time.monotonic() + PATIENCE
    while process.poll() is None and not list((out / "rows").glob("*.parquet")):
        if time.monotonic() > until:
            sys.exit("no rows came")
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.3 * whole))
    actors = [child for child in psutil.Process(process.pid).children(recursive=True) if is_actor(child)]
    for actor in actors[:1]:
        actor.kill()
        print(f"killed {actor.pid}, one of {len(actors)} actors", flush=True)
    if process.wait():
        sys.exit("the job on Ray failed")
    return len(actors[:1])


def is_actor(process: psutil.Process) -> bool:
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it is gone
        return False


def compared(args: argparse.Namespace, alone: Path, out: Path, kills: int, files: list[int]) -> dict[str, Any]:
    """What is lost, twice, or other than in the job that nobody disturbed."""
    expected, found = rows_of(alone), rows_of(out)
    ids, others = (table.column("id").to_pylist() for table in (expected, found))
    classes = [name for name in expected.column_names if name.endswith("_class")]
    row = {
        "engine": args.engine,
        "model": args.model,
        "recipe": args.recipe,
        "items": len(ids) + parquet.read_metadata(alone / "errors.parquet").num_rows,
        "shard": args.shard,
        "killed": kills,
        "files_at_each_kill": " ".join(map(str, files)),
        "rows": len(others),
        "lost": len(set(ids) - set(others)),
        "twice": len(others) - len(set(others)),
        "ids_equal": ids == others,
        "classes_equal": all(expected.column(name).equals(found.column(name)) for name in classes),
        "rows_equal": expected.equals(found),
    }
    print(row)
    return row


def speed(args: argparse.Namespace) -> None:
    """Rounds of the model alone on batches that are there, and of the job, by turns."""
    torch.set_num_threads(args.threads)
    cases = [(args.host, args.host_recipe, args.speed_limit)]
    cases += [] if args.no_nano else [("nano_vit", "papr(keep=0.4, proposal=nano_convnet)", args.limit)]
    rows = []
    for model, recipe, limit in cases:
        spec = ModelSpec(model, recipe, pretrained=model.startswith("nano"))
        torch.manual_seed(0)
        settings: dict[str, Any] = {"batch": args.batch, "shard": args.shard, "limit": limit}
        with tempfile.TemporaryDirectory() as scratch:
            work = open_work(job_of(spec, str(args.images), scratch, **settings))
            reader = Reader(
                work.items, range(work.shards), shard=work.shard_size, batch=work.batch_size, workers=args.workers
            )
            batches = [batch.images for batch in reader if batch.images is not None]
            count = sum(map(len, batches))
            alone, running, said = [], [], ()
            for number in range(args.rounds):
                before = time.perf_counter()
                for images in batches:
                    work.predict(images)
                alone.append(count / (time.perf_counter() - before))
                result = run(spec, str(args.images), f"{scratch}/{number}", workers=args.workers, **settings)
                running.append(result.per_second)
                said = result.notes
                print(f"{model}: alone {alone[-1]:.4g}, run {running[-1]:.4g} a second; {' '.join(said)}", flush=True)
        shares = sorted(b / a for a, b in zip(alone, running, strict=True))
        rows.append(
            {
                "model": model,
                "recipe": recipe,
                "items": count,
                "batch": args.batch,
                "workers": args.workers,
                "rounds": args.rounds,
                "alone_per_second": statistics.median(alone),
                "run_per_second": statistics.median(running),
                "share": statistics.median(shares),
                "low": shares[0],
                "high": shares[-1],
                "waited": result.waited,
                "said": " ".join(said),
            }
        )
    update("jobs_speed.csv", rows, "model", "recipe", "batch")


def broken(args: argparse.Namespace) -> None:
    """What a job makes of each broken picture."""
    with tempfile.TemporaryDirectory() as scratch:
        expected = broken_folder(Path(scratch) / "broken")
        spec = ModelSpec("test_vit", "", pretrained=False, size=224)
        run(spec, f"{scratch}/broken", f"{scratch}/out", workers=0)
        read = set(rows_of(Path(scratch) / "out").column("id").to_pylist())
        errors = {each["id"]: each["error"] for each in parquet.read_table(f"{scratch}/out/errors.parquet").to_pylist()}
    rows = [
        {
            "picture": name,
            "row": name in read,
            "error": errors.get(name, ""),
            "as_expected": (name in read) is (told is None) and (told or "") in errors.get(name, ""),
        }
        for name, told in expected.items()
    ]
    rows.append({"picture": f"{SKIPPED} (a folder)", "row": False, "error": "", "as_expected": SKIPPED not in read})
    write("jobs_broken.csv", rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "speed", "broken"))
    parser.add_argument("--images", default=SHARED / "data" / "imagenette_val.tar")
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="that is killed")
    parser.add_argument("--weights", default=None, help="of it; default those of ../shared")
    parser.add_argument("--recipe", default="guarded(r=8) + readout()", help="of it")
    parser.add_argument("--host", default="vit_base_patch16_224", help="whose speed is measured, random weights")
    parser.add_argument("--host-recipe", default="papr(keep=0.5)")
    parser.add_argument("--speed-limit", type=int, default=256, help="pictures for it")
    parser.add_argument("--no-nano", action="store_true", help="measure this one alone")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shard", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.weights is None and args.model == "deit_tiny_patch16_224":
        args.weights = DEIT
    {"kill": kill, "speed": speed, "broken": broken}[args.what](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
