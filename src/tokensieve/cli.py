"""The command line: options in; one table, or one JSON object, out. What is computed lives in `measure`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .errors import InputError, SieveError
from .job import DTYPES, Job, numbers

if TYPE_CHECKING:  # torch, timm and rich wait until a command needs them, so that --help answers at once
    from .show.progress import Watched

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokensieve {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]
ModelOption = Annotated[str, typer.Option(metavar="NAME", help="The model: a vision transformer that timm knows.")]
RecipeOption = Annotated[
    str, typer.Option(metavar="TEXT|FILE", help="What to do with its tokens, e.g. 'papr(keep=0.8) + tome(r=8)'.")
]
WeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="The model's weights, instead of a download.")]
PretrainedOption = Annotated[
    bool, typer.Option(help="Download weights that no FILE gives, of model and proposal, or let them be random.")
]
ProposalWeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="Weights of the recipe's proposal.")]
SizeOption = Annotated[str | None, typer.Option(metavar="224|224x256", help="Height x width; default the model's.")]
DtypeOption = Annotated[str, typer.Option(metavar="|".join(DTYPES), help="Precision of the model.")]
DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda|cuda:0|auto", help="Where to run.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; default torch's choice.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, unrounded, and nothing else.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: VersionOption = False) -> None:
    """Let a pretrained vision transformer read only the tokens that matter, and know what it costs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def bench(
    model: ModelOption = "vit_base_patch16_224",
    recipe: RecipeOption = "papr(keep=0.5)",
    weights: WeightsOption = None,
    pretrained: PretrainedOption = False,
    proposal_weights: ProposalWeightsOption = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes to measure.")] = "8",
    size: SizeOption = None,
    dtype: DtypeOption = "fp32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend on each batch size.")] = 10.0,
    prepack: Annotated[bool, typer.Option("--prepack", help="Pack linear weights once, on CPUs, for both.")] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how much faster a model gets, beside the dense model in the same process, and say why not more.

    Weights are random unless asked for: speed does not depend on them.
    """
    batches = numbers(batch, "--batch")
    job = Job(model, recipe, weights, pretrained, proposal_weights, size, dtype, device, threads)
    if prepack and job.where.type != "cpu":
        raise InputError("--prepack is for CPUs: leave it out, or give --device cpu.")
    import torch
    from rich.console import Console

    from .measure import peak_memory, speed
    from .measure.verdict import verdict
    from .packing import prepack as pack

    console = Console(stderr=True)
    with console.status("opening the model"):
        opened = job.open()
        record = {**job.record(opened), "prepacked": prepack}
        if prepack:
            opened = job.sieve(pack(opened.dense), opened.own)
    runs = []
    for count in batches:
        with console.status(f"batch {count}: measuring for {seconds:g} s"), torch.no_grad():
            images = torch.randn(count, 3, *opened.own.input_size, device=job.where, dtype=job.precision)
            result = speed(opened.fast, opened.dense, images, seconds=seconds)
            calls = {"dense": partial(opened.dense, images), "sieved": partial(opened.fast, images)}
            peaks = {name: peak_memory(call, job.where) for name, call in calls.items()} if memory else None
        measured = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "times"}
        ratios = {"macs_ratio": record["macs"]["ratio"], "host_macs_ratio": record["macs"]["ratio_without_proposal"]}
        said = verdict(result, **ratios, dtype=dtype, device=record["device"], prepacked=prepack)
        runs.append({**measured, "memory_bytes": peaks, "verdict": said})
    _print({**record, "runs": runs}, "bench_view", as_json)


@app.command("eval")
def evaluate(
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Class folders, a flat folder, a tar, a timm data set.")],
    model: ModelOption = "vit_base_patch16_224",
    recipe: RecipeOption = "papr(keep=0.5)",
    weights: WeightsOption = None,
    pretrained: PretrainedOption = True,
    proposal_weights: ProposalWeightsOption = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help="Which folder is which class, for folders of some classes.")
    ] = None,
    preprocessing: Annotated[str, typer.Option(metavar="timm|papers", help="How pictures are resized.")] = "timm",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures that go through together.")] = 32,
    k: Annotated[str | None, typer.Option(metavar="K,...", help="Top-k accuracies; default 1,5.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N pictures, evenly spread.")] = None,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that read ahead.")] = 0,
    size: SizeOption = None,
    dtype: DtypeOption = "fp32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a recipe loses on your own pictures: accuracy where there are labels, agreement everywhere."""
    ks = None if k is None else numbers(k, "--k")
    job = Job(model, recipe, weights, pretrained, proposal_weights, size, dtype, device, threads)
    from rich.console import Console

    from .data import Preprocessing, image_set, load_batches
    from .measure import fidelity
    from .show.progress import Watched, list_failures

    # The data is opened first, which is soon done; how its pictures are prepared, only the model knows.
    pictures = image_set(data, Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3), classes=classes, limit=limit)
    with Console(stderr=True).status("opening the model"):
        dense, fast, own = opened = job.open()
        prepared = Preprocessing.named(preprocessing, dense, mean=own.mean, std=own.std, size=own.input_size)
        pictures.transform = prepared.transform()
        record = job.record(opened)
        seen = Watched(load_batches(pictures, batch, workers))
    folders = 0 if classes else len(getattr(pictures, "classes", ()))
    result = fidelity(fast, dense, seen, k=_scorable(ks, seen, folders, getattr(dense, "num_classes", None)))
    both = {"dense": result.dense_accuracy, "sieved": result.accuracy}
    record |= {
        "data": data,
        "classes": classes,
        "preprocessing": {"name": preprocessing, **asdict(prepared)},
        "batch": batch,
        "images": result.count,
        **{name: scores and {f"top{k}": percent for k, percent in scores.top.items()} for name, scores in both.items()},
        **{name: getattr(result, name) for name in ("agreement", "agreement_stderr", "kl", "cosine")},
        "failures": [asdict(failure) for failure in result.failures],
    }
    _print(record, "eval_view", as_json)
    list_failures(result.failures)


def _scorable(ks: list[int] | None, seen: Watched, folders: int, classes: int | None) -> list[int] | None:
    """The top-k that make sense: none where labels or a classifier are missing, or do not belong together."""
    why = None
    if not classes or not seen.labelled:
        why = "accuracy needs a label for every picture and a model with a classifier"
    elif folders and folders != classes:
        why = (
            f"the {folders} class folders are not the {classes} classes of the model; "
            "--classes FILE says which folder is which class"
        )
    if why is None:
        return ks or [k for k in (1, 5) if k <= (classes or 0)]
    if ks:
        raise InputError(f"--k asks for accuracy, but {why}.")
    if folders:
        _say(f"Accuracy is left out: {why}.")
    return None


def _say(sentence: str) -> None:
    print(f"tokensieve: {sentence}", file=sys.stderr)


def _print(record: dict[str, Any], view: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from .show import tables

    Console(highlight=False).print(getattr(tables, view)(record))


def _sentence(error: Exception) -> str | None:
    """What the user can act on; None for a defect of ours, which keeps its traceback."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}."
    if isinstance(error, SieveError | OSError):
        return str(error)
    if hasattr(error, "format_message"):  # the command line's own: unknown options, values out of range
        return error.format_message()
    if isinstance(error, RuntimeError) and "memory" in str(error):
        return f"Out of memory, a smaller batch may fit: {str(error).splitlines()[0]}"
    return None


def main() -> int:
    """Run the command line. Exit code 2, and one line on stderr, for whatever the user can mend."""
    try:
        status = app(prog_name="tokensieve", standalone_mode=False)
    except typer.Abort:
        return 130
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _say(" ".join(sentence.split()))
        return 2
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
