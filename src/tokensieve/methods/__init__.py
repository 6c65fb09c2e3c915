"""Token reduction methods, each in a file of its name, and the base classes that they share.

To add a method, write its file, import it here and name it in `__all__`; `@register` adds it to `METHODS`.
"""

from .adaptive import Adaptive
from .ats import ATS
from .base import METHODS, BaseMethod, Method, PixelMethod, TokenSite, register
from .corrected import Corrected
from .diffrate import DiffRate
from .dtop import DToP
from .dynamic_spatial import DynamicCNN, DynamicSwin
from .dynamicvit import DynamicViT
from .evidence import AttentionEvidence, Evidence, ExitEvidence, MapEvidence
from .evit import EViT
from .gtp import GTP
from .guarded import Guarded
from .mctf import MCTF
from .papr import PaPr
from .patch_slimming import PatchSlimming
from .pitome import PiToMe
from .ranking import Ranking, Scored
from .readout import Readout
from .rlt import RLT
from .tofu import ToFu
from .tome import ToMe

__all__ = [
    "ATS",
    "GTP",
    "MCTF",
    "METHODS",
    "RLT",
    "Adaptive",
    "AttentionEvidence",
    "BaseMethod",
    "Corrected",
    "DToP",
    "DiffRate",
    "DynamicCNN",
    "DynamicSwin",
    "DynamicViT",
    "EViT",
    "Evidence",
    "ExitEvidence",
    "Guarded",
    "MapEvidence",
    "Method",
    "PaPr",
    "PatchSlimming",
    "PiToMe",
    "PixelMethod",
    "Ranking",
    "Readout",
    "Scored",
    "ToFu",
    "ToMe",
    "TokenSite",
    "register",
]
