"""Dense prediction: segmenters with plain vision transformers as backbone, and the published checkpoints they load."""

from . import host as _host  # noqa: F401  (registers segmenters as hosts)
from .atm import AtmPrediction
from .build import linear, segvit, segvit_v1, segvit_v2, setr
from .checkpoints import load_mmseg
from .plan import SegmenterPlan, open_trained
from .segmenter import Segmenter
from .sliding import mirrored, slide

__all__ = [
    "AtmPrediction",
    "Segmenter",
    "SegmenterPlan",
    "linear",
    "load_mmseg",
    "mirrored",
    "open_trained",
    "segvit",
    "segvit_v1",
    "segvit_v2",
    "setr",
    "slide",
]
