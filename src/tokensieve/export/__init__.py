"""Models for other runtimes: ONNX files, exported programs, and weights packed for the CPU."""

from .cascade_files import ExportedCascade, export_cascade
from .checked import TOLERANCE, Exported
from .onnx_file import OPSET, export_onnx
from .packing import PackedLinear, prepack
from .program_file import export_program

__all__ = [
    "OPSET",
    "TOLERANCE",
    "Exported",
    "ExportedCascade",
    "PackedLinear",
    "export_cascade",
    "export_onnx",
    "export_program",
    "prepack",
]
