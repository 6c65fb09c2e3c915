"""Images and videos in, batches out: thin over the readers and transforms of timm, Pillow and PyAV."""

from .classes import class_descriptions, class_index
from .images import Failure, ImageSet, StreamSet, image_set, photograph_set, read_image, scene_set
from .label_pictures import palette, save_labels
from .listing import Skipped
from .loading import Batch, Batches, load_batches
from .preprocessing import Preprocessing
from .scene_maps import SceneMaps
from .scenes import Scene, Scenes, photographs
from .segmentation import AsTensor, SegmentationSet, segmentation_set
from .segmentation_layouts import LAYOUTS, Layout
from .video import Clips, VideoSet, Window, average_views, read_clips, sliding_clips, video_set, views_as_batch
from .video_preprocessing import VideoPreprocessing
from .video_sampling import Views

__all__ = [
    "LAYOUTS",
    "AsTensor",
    "Batch",
    "Batches",
    "Clips",
    "Failure",
    "ImageSet",
    "Layout",
    "Preprocessing",
    "Scene",
    "SceneMaps",
    "Scenes",
    "SegmentationSet",
    "Skipped",
    "StreamSet",
    "VideoPreprocessing",
    "VideoSet",
    "Views",
    "Window",
    "average_views",
    "class_descriptions",
    "class_index",
    "image_set",
    "load_batches",
    "palette",
    "photograph_set",
    "photographs",
    "read_clips",
    "read_image",
    "save_labels",
    "scene_set",
    "segmentation_set",
    "sliding_clips",
    "video_set",
    "views_as_batch",
]
