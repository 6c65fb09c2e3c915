"""Preprocessing of pictures for inference: resize, crop and normalisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import timm.data
from PIL import Image
from timm.data.transforms import str_to_pil_interp
from torch import Tensor, nn

from ..errors import InputError, RecipeError
from .inputs import is_count, size_of

_CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation of images for inference, by timm's evaluation transform.

    All attributes can be stored as JSON: `Preprocessing(**json.loads(json.dumps(dataclasses.asdict(p)))) == p`.

    Attributes:
        input_size: height and width of the tensor, in pixels.
        mean: mean per channel, for values in [0, 1]; three numbers (R, G, B) to read pictures.
        std: standard deviation per channel, for values in [0, 1].
        interpolation: timm's name: "bicubic", "bilinear", "nearest", "lanczos", "box" or "hamming".
        crop_pct: side of the crop as a fraction of the resized side, in (0, 1].
        crop_mode: "center" keeps the aspect ratio and crops, "squash" changes the aspect ratio, "border" pads.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        check_input_size(self)
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise RecipeError(
                f"mean and std must have one number for each channel, std positive, not {self.mean} and {self.std}."
            )
        if not 0 < self.crop_pct <= 1:
            raise RecipeError(f"crop_pct must lie in (0, 1], not {self.crop_pct}.")
        if self.crop_mode not in _CROP_MODES:
            raise RecipeError(f"crop_mode must be one of {', '.join(_CROP_MODES)}, not '{self.crop_mode}'.")
        try:
            str_to_pil_interp(self.interpolation)
        except KeyError:
            raise RecipeError(f"Pillow has no interpolation '{self.interpolation}'.") from None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | Sequence[int] | None = None,
    ) -> Self:
        """The preprocessing for which a model was trained, from timm's `pretrained_cfg`.

        Args:
            model: a timm model, a sieved one, or any module if `mean` and `std` are given.
            mean: replaces the mean in `pretrained_cfg`.
            std: replaces the standard deviation in `pretrained_cfg`.
            size: side, or (height, width), in pixels; by default the size for which the model was built.

        Raises:
            InputError: the model has no mean and standard deviation, or no input size, and none is given.
        """
        host = _host(model)
        has_config = bool(getattr(host, "pretrained_cfg", None))
        if not has_config and (mean is None or std is None):
            raise InputError(
                f"{type(host).__name__} states no normalisation (timm's pretrained_cfg): give mean= and std=."
            )
        # `pretrained_cfg` has the size of the pretrained weights; a model built with img_size= has another one.
        if size is None:
            size = size_of(host)
        if size is None and not has_config:
            raise InputError(f"{type(host).__name__} states no input size: give size= in pixels.")
        config = timm.data.resolve_model_data_config(host)
        return cls(
            input_size=config["input_size"][-2:] if size is None else _pair(size),
            mean=tuple(config["mean"] if mean is None else mean),
            std=tuple(config["std"] if std is None else std),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    @classmethod
    def papers(
        cls,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | Sequence[int] | None = None,
    ) -> Self:
        """The preprocessing of PaPr's evaluations: bicubic, short side resized to the input size, centre crop.

        For input sizes of 384 pixels and more, the whole picture is resized to the input size without keeping its
        aspect ratio. Below that, hierarchical models (ConvNeXt, Swin) use crop_pct 0.875, such as 256 to 224 pixels.
        Arguments and errors are those of `of`.
        """
        preprocessing = cls.of(model, mean, std, size)
        squash = min(preprocessing.input_size) >= 384
        whole = squash or not _is_hierarchical(_host(model))
        return replace(
            preprocessing,
            interpolation="bicubic",
            crop_pct=1.0 if whole else 0.875,
            crop_mode="squash" if squash else "center",
        )

    @classmethod
    def named(cls, name: str, model: nn.Module, **overrides: Any) -> Self:
        """The preprocessing `of` for the name "timm", `papers` for "papers"; the values of `--preprocessing`.

        Raises:
            RecipeError: another name.
            InputError: as in `of`.
        """
        if name == "timm":
            return cls.of(model, **overrides)
        if name == "papers":
            return cls.papers(model, **overrides)
        raise RecipeError(f"The preprocessing '{name}' is unknown: choose timm or papers.")

    @property
    def reads(self) -> tuple[int, int]:
        """(height, width) of the model's input; for a clip see `VideoPreprocessing.reads`."""
        return self.input_size

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """A picklable function from an RGB image to a float32 tensor (3, H, W).

        It raises InputError for a picture so narrow that resizing it would need too much memory.

        Raises:
            InputError: the preprocessing is not for three channels.
        """
        if len(self.mean) != 3:
            raise InputError(
                f"Pictures have 3 channels, and this preprocessing is for {len(self.mean)}: pass tensors instead."
            )
        return _Transform(self)


def check_input_size(preprocessing: Any) -> None:
    """Convert `input_size`, `mean` and `std` to tuples; raises RecipeError if `input_size` is not (height, width).

    JSON has lists; tuples keep the object hashable, and equal to the one that was written.
    """
    for field in ("input_size", "mean", "std"):
        object.__setattr__(preprocessing, field, tuple(getattr(preprocessing, field)))
    size = preprocessing.input_size
    if len(size) != 2 or not all(is_count(side) for side in size):
        raise RecipeError(f"input_size must be a height and a width in pixels, not {size}.")


class _Transform:
    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.steps = timm.data.create_transform(
            input_size=(3, *preprocessing.input_size),
            is_training=False,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            crop_pct=preprocessing.crop_pct,
            crop_mode=preprocessing.crop_mode,
        )

    def __call__(self, image: Image.Image) -> Tensor:
        height, width = self.preprocessing.input_size
        # Resizing a 1 x 60000 picture at its aspect ratio would need gigabytes: apply Pillow's own limit on pixels.
        if self.preprocessing.crop_mode == "center" and Image.MAX_IMAGE_PIXELS is not None:
            scale = max(height / image.height, width / image.width) / self.preprocessing.crop_pct
            if scale**2 * image.height * image.width > Image.MAX_IMAGE_PIXELS:
                raise InputError(
                    f"The picture is too narrow to be resized and cropped: {image.width} x {image.height} pixels."
                )
        return self.steps(image)


def _host(model: nn.Module) -> nn.Module:
    """The module that has a config: the host of a sieved model, or the model inside a wrapper, else the model."""
    inner = getattr(model, "model", None)
    has_config = hasattr(model, "pretrained_cfg") or hasattr(model, "config")
    return inner if isinstance(inner, nn.Module) and not has_config else model


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else cast(tuple[int, int], tuple(size))


def _is_hierarchical(model: nn.Module) -> bool:
    """Whether the stages of a timm model differ in resolution."""
    stages = getattr(model, "feature_info", None) or []
    return len({stage["reduction"] for stage in stages if isinstance(stage, dict)}) > 1
