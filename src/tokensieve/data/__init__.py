"""Images in, batches out: thin over the readers and transforms of timm and Pillow."""

from .classes import class_descriptions, class_index
from .images import Failure, ImageSet, StreamSet, image_set, photograph_set, read_image, scene_set
from .listing import Skipped
from .loading import Batch, Batches, load_batches
from .preprocessing import Preprocessing
from .scenes import Scene, Scenes, photographs

__all__ = [
    "Batch",
    "Batches",
    "Failure",
    "ImageSet",
    "Preprocessing",
    "Scene",
    "Scenes",
    "Skipped",
    "StreamSet",
    "class_descriptions",
    "class_index",
    "image_set",
    "load_batches",
    "photograph_set",
    "photographs",
    "read_image",
    "scene_set",
]
