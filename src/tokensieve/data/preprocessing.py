"""How a picture becomes the tensor that a model was trained to read."""

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
    """Resize, crop and normalisation of images at inference; timm's evaluation transform carries it out.

    Everything in it is plain JSON: `Preprocessing(**json.loads(json.dumps(dataclasses.asdict(p)))) == p`.

    Attributes:
        input_size: height and width of the tensor, in pixels.
        mean: per channel, of values in [0, 1]; three (R, G, B) for whatever reads pictures.
        std: per channel, of values in [0, 1].
        interpolation: as timm names it: "bicubic", "bilinear", "nearest", "lanczos", "box" or "hamming".
        crop_pct: side of the crop as a share of the resized side, in (0, 1].
        crop_mode: "center" keeps the aspect ratio and crops, "squash" warps, "border" pads.
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
                f"mean and std must be a number each for every channel, std positive, not {self.mean} and {self.std}."
            )
        if not 0 < self.crop_pct <= 1:
            raise RecipeError(f"crop_pct must lie in (0, 1], not {self.crop_pct}.")
        if self.crop_mode not in _CROP_MODES:
            raise RecipeError(f"crop_mode must be one of {', '.join(_CROP_MODES)}, not '{self.crop_mode}'.")
        try:
            str_to_pil_interp(self.interpolation)
        except KeyError:
            raise RecipeError(f"interpolation '{self.interpolation}' is not one that Pillow has.") from None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | Sequence[int] | None = None,
    ) -> Self:
        """The model's own preprocessing, as timm's `pretrained_cfg` states it.

        Args:
            model: a timm model, a sieved one, or any module with `mean` and `std` given.
            mean: instead of the configured one.
            std: instead of the configured one.
            size: side, or height and width, in pixels; by default what the model was built for.

        Raises:
            InputError: the model states no normalisation or no input size, and none is given.
        """
        host = _host(model)
        has_config = bool(getattr(host, "pretrained_cfg", None))
        if not has_config and (mean is None or std is None):
            raise InputError(
                f"{type(host).__name__} states no normalisation (timm's pretrained_cfg): give mean= and std=."
            )
        # `pretrained_cfg` keeps the size of the weights; a model built with img_size= reads another.
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
        """What the PaPr evaluations do: bicubic, short side to exactly the input size, centre crop.

        From 384 pixels on the whole picture is warped to the input size instead. Hierarchical models (ConvNeXt, Swin)
        below that keep the usual margin: 256 to 224, crop_pct 0.875. Arguments and errors as in `of`.
        """
        preprocessing = cls.of(model, mean, std, size)
        warp = min(preprocessing.input_size) >= 384
        exact = warp or not _is_hierarchical(_host(model))
        return replace(
            preprocessing,
            interpolation="bicubic",
            crop_pct=1.0 if exact else 0.875,
            crop_mode="squash" if warp else "center",
        )

    @classmethod
    def named(cls, name: str, model: nn.Module, **overrides: Any) -> Self:
        """`of` for "timm" and `papers` for "papers", as command lines spell them.

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
        """What a model reads: one image of this height and width."""
        return self.input_size

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """A function from an RGB image to a float32 tensor (3, H, W); it can be sent to worker processes.

        The function raises InputError for a picture so narrow that resizing it would not fit in memory.

        Raises:
            InputError: the model reads other than three channels, which pictures do not have.
        """
        if len(self.mean) != 3:
            raise InputError(
                f"Pictures have 3 channels, and this preprocessing is for {len(self.mean)}: give tensors instead."
            )
        return _Transform(self)


def check_input_size(preprocessing: Any) -> None:
    """Refuse an `input_size` that is no height and width; it, `mean` and `std` become tuples.

    Lists come from JSON; tuples keep the object hashable and equal to what it was written from.
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
        # Keeping the aspect ratio of a 1 x 60000 strip asks for gigabytes: Pillow's own limit for a picture holds here.
        if self.preprocessing.crop_mode == "center" and Image.MAX_IMAGE_PIXELS is not None:
            scale = max(height / image.height, width / image.width) / self.preprocessing.crop_pct
            if scale**2 * image.height * image.width > Image.MAX_IMAGE_PIXELS:
                raise InputError(
                    f"The picture is too narrow to be resized and cropped: {image.width} x {image.height} pixels."
                )
        return self.steps(image)


def _host(model: nn.Module) -> nn.Module:
    """The model that states its own settings: a sieved one carries its host as `model`."""
    inner = getattr(model, "model", None)
    states = hasattr(model, "pretrained_cfg") or hasattr(model, "config")
    return inner if isinstance(inner, nn.Module) and not states else model


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else cast(tuple[int, int], tuple(size))


def _is_hierarchical(model: nn.Module) -> bool:
    """Whether the stages of a timm model differ in resolution."""
    stages = getattr(model, "feature_info", None) or []
    return len({stage["reduction"] for stage in stages if isinstance(stage, dict)}) > 1
