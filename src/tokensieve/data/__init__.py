"""Images in, batches out: thin over the readers and transforms of timm and Pillow."""

from .classes import class_index
from .images import Failure, ImageSet, StreamSet, image_set, read_image
from .loading import Batch, Batches, load_batches
from .preprocessing import Preprocessing

__all__ = [
    "Batch",
    "Batches",
    "Failure",
    "ImageSet",
    "Preprocessing",
    "StreamSet",
    "class_index",
    "image_set",
    "load_batches",
    "read_image",
]
