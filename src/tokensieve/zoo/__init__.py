"""Creates models from names and weights files, with the mean and standard deviation of their input."""

from .hf_video import VIDEO_MODELS
from .models import Loaded, create, file_sha256, read_weights, without_memory
from .nano import BUNDLED, bundled_weights
from .video import VIDEO_PROPOSALS, video_classifier, video_proposal

__all__ = [
    "BUNDLED",
    "VIDEO_MODELS",
    "VIDEO_PROPOSALS",
    "Loaded",
    "bundled_weights",
    "create",
    "file_sha256",
    "read_weights",
    "video_classifier",
    "video_proposal",
    "without_memory",
]
