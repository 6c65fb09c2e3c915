"""What happens to tokens: one file a method. To add one, write its file and name it here."""

from .ats import ATS
from .base import METHODS, Evidence, Here, Method, register
from .corrected import Corrected
from .diffrate import DiffRate
from .dynamic_spatial import DynamicCNN, DynamicSwin
from .dynamicvit import DynamicViT
from .evit import EViT
from .gtp import GTP
from .guarded import Guarded
from .mctf import MCTF
from .papr import PaPr
from .patch_slimming import PatchSlimming
from .pitome import PiToMe
from .readout import Readout
from .tofu import ToFu
from .tome import ToMe

__all__ = [
    "ATS",
    "GTP",
    "MCTF",
    "METHODS",
    "Corrected",
    "DiffRate",
    "DynamicCNN",
    "DynamicSwin",
    "DynamicViT",
    "EViT",
    "Evidence",
    "Guarded",
    "Here",
    "Method",
    "PaPr",
    "PatchSlimming",
    "PiToMe",
    "Readout",
    "ToFu",
    "ToMe",
    "register",
]
