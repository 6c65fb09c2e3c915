"""Datasets of images and videos, their preprocessing, and batches; built on timm, Pillow and PyAV."""

from .classes import class_descriptions, class_index
from .images import Failure, ImageSet, StreamSet, image_set, photograph_set, read_image, scene_set
from .label_pictures import palette, save_labels
from .listing import Skipped
from .loading import Batch, Batches, load_batches
from .media import media_set
from .moving_scenes import MovingScene, MovingScenes
from .preprocessing import Preprocessing
from .scene_drawing import photographs
from .scene_maps import SceneMaps
from .scenes import Scene, Scenes
from .segmentation import AsTensor, SegmentationSet, segmentation_set
from .segmentation_layouts import LAYOUTS, Layout
from .video import MovingSceneSet, average_views, moving_scene_set, video_set, views_as_batch
from .video_preprocessing import VideoPreprocessing
from .video_reading import Clips, VideoSet, Window, read_clips, sliding_clips
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
    "MovingScene",
    "MovingSceneSet",
    "MovingScenes",
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
    "media_set",
    "moving_scene_set",
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
