"""`tokensieve export`: the sieved model as one file for other runtimes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from .._files import check_folder
from ..errors import InputError
from .opening import is_cascade_recipe, read_spec, record_of
from .options import ClipOptions, JsonOption, MachineOptions, ModelOptions
from .output import print_record

if TYPE_CHECKING:  # heavy imports wait until a command needs them, so that --help answers at once
    from ..export import Exported

FORMATS = {"onnx": ".onnx", "program": ".pt2"}


def export(
    *,
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE|FOLDER", help="The file to write: .onnx, or .pt2 for torch.export; for a cascade a folder."
        ),
    ],
    network: ModelOptions,
    format: Annotated[
        str | None, typer.Option(metavar="|".join(FORMATS), help="File format; default by the ending of FILE, or onnx.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Output to export: logits, last_hidden_state or feature_maps; default logits."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Fixed batch size of the file; default any.")
    ] = None,
    opset: Annotated[int | None, typer.Option(metavar="N", help="Version of ONNX's operators; default 20.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the images with which the file is checked.")] = 0,
    clips: ClipOptions,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Write the sieved model as ONNX or as a torch.export program, after checking its outputs against PyTorch.

    ONNX is written in fp32 on the CPU; a program has the --dtype and --device given.
    """
    cascaded = is_cascade_recipe(network)
    kind = format or next((name for name, end in FORMATS.items() if out.endswith(end)), "onnx" if cascaded else None)
    if kind not in FORMATS:
        problem = (
            f"--format must be one of {', '.join(FORMATS)}, not {kind!r}" if kind else f"{out} has no known ending"
        )
        raise InputError(f"{problem}: let --out end in .onnx or .pt2, or give --format.")
    dtype, device = machine.dtype, machine.device
    if kind == "onnx" and (dtype, device) not in (("fp32", "cpu"), ("fp32", "auto")):
        raise InputError(f"ONNX is written in fp32 on the CPU, not in {dtype} on {device}: only .pt2 files may differ.")
    if kind == "program" and opset is not None:
        raise InputError("--opset is for ONNX: leave it out, or let --out end in .onnx.")
    if cascaded:
        if output is not None:
            raise InputError("--output cannot be given for a cascade, which needs the class scores of its members.")
        check_folder(out)
    spec = read_spec(network, replace(machine, device="cpu") if kind == "onnx" else machine, clips, cascades=True)
    from ..cascades.cascade import Cascade
    from ..export import OPSET, TOLERANCE, export_cascade, export_onnx, export_program
    from ..show.progress import working

    with working("opening the model"):
        opened = spec.open()
        record = record_of(spec, opened)
    preprocessing = opened.preprocessing
    if cascaded:
        with working("tracing, writing and checking each member, which takes a minute for a large model"):
            assert isinstance(opened.fast, Cascade)
            assert kind is not None
            files = export_cascade(
                opened.fast,
                out,
                opened.input_spec,
                format=kind,
                batch=batch,
                opset=OPSET if opset is None else opset,
                mean=preprocessing.mean,
                std=preprocessing.std,
                seed=seed,
            )
        record |= {
            "format": kind,
            "preprocessing": asdict(preprocessing),
            "path": str(files.path),
            "bytes": files.bytes,
        }
        members = [{**asdict(member), "path": str(member.path)} for member in files.members]
        record |= {"members": members, "difference": files.difference, "tolerance": TOLERANCE, "seed": seed}
        print_record(record, "export_view.cascade_view", as_json)
        return
    write: Callable[..., Exported] = export_program
    if kind == "onnx":
        write = partial(export_onnx, opset=OPSET if opset is None else opset)
    with working("tracing, writing and checking, which takes a minute for a large model"):
        written = write(
            opened.fast,
            out,
            opened.input_spec,
            output=output,
            batch=batch,
            mean=preprocessing.mean,
            std=preprocessing.std,
            seed=seed,
        )
    record |= {
        "format": kind,
        "preprocessing": asdict(preprocessing),
        **asdict(written),
        "path": out,
        "differences": {str(count): value for count, value in written.differences.items()},
        "tolerance": TOLERANCE,
        "seed": seed,
    }
    print_record(record, "export_view.export_view", as_json)
