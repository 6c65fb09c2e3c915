"""transformers' models that read videos: by short names, by the names of checkpoints, from folders. Nothing of
transformers is imported before one is requested."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, RecipeError, first_line
from .videomae_keys import EPS, from_mmaction2, is_mmaction2

TRANSFORMERS = "transformers/"
"""In front of the name of a checkpoint on the Hugging Face Hub, or of a folder with one."""
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
"""Files beside a checkpoint that say how its clips are normalised."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
KEY_BIAS = "attention.attention.key.bias"
READ = ("VideoMAE", "Vivit", "VJEPA2")
"""How the classes of models begin that are opened here."""


class VideoModel(NamedTuple):
    """An architecture and the checkpoint that its name stands for."""

    kind: str
    """The prefix of transformers' classes KINDConfig and KINDForVideoClassification."""
    checkpoint: str
    settings: Mapping[str, Any]
    """Settings of the configuration that are not the default."""
    norm: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    clips: Mapping[str, Any] = {}
    """Settings of `VideoPreprocessing` for it."""


def _mae(size: str, width: int, depth: int, heads: int, data: str = "kinetics", classes: int = 400) -> VideoModel:
    settings = {
        "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": 4 * width,
        "num_labels": classes, "use_mean_pooling": True,
    }  # fmt: skip
    clips = {"stride": 4} if data == "kinetics" else {"sampling": "uniform"}
    return VideoModel("VideoMAE", f"MCG-NJU/videomae-{size}-finetuned-{data}", settings, clips=clips)


def _jepa(checkpoint: str, frames: int, crop: int, **settings: Any) -> VideoModel:
    settings |= {"frames_per_clip": frames, "crop_size": crop, "num_labels": 174}
    return VideoModel("VJEPA2", f"facebook/vjepa2-{checkpoint}", settings, clips={"stride": 4})


VIDEO_MODELS: dict[str, VideoModel] = {
    "videomae_small": _mae("small", 384, 12, 6),
    "videomae_base": _mae("base", 768, 12, 12),
    "videomae_large": _mae("large", 1024, 24, 16),
    "videomae_huge": _mae("huge", 1280, 32, 16),
    "videomae_base_ssv2": _mae("base", 768, 12, 12, "ssv2", 174),
    "vivit_base": VideoModel(
        "Vivit", "google/vivit-b-16x2-kinetics400", {"num_labels": 400}, HALF, {"stride": 2, "short_side": 256}
    ),
    "vjepa2_large_ssv2": _jepa("vitl-fpc16-256-ssv2", 16, 256),
    "vjepa2_giant_ssv2": _jepa(
        "vitg-fpc64-384-ssv2", 64, 384, hidden_size=1408, num_hidden_layers=40, num_attention_heads=22,
        mlp_ratio=48 / 11,
    ),
}  # fmt: skip
"""By short name; `create` knows them, with random weights or with those of the checkpoint."""


def is_video_model(name: str) -> bool:
    """Whether `build` makes the model of this name."""
    return name in VIDEO_MODELS or name.startswith(TRANSFORMERS)


def build(
    name: str, args: Mapping[str, Any], *, download: bool, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A model that reads videos; its `pretrained_cfg` says how, as far as it is known.

    Args:
        name: of `VIDEO_MODELS`, or "transformers/" and a checkpoint's name on the Hub or a folder.
        args: settings of the configuration.
        download: take the checkpoint's weights; random ones otherwise.
        state: weights instead, under the names of the model or under those of checkpoints.

    Raises:
        RecipeError: the checkpoint is of no model that reads videos.
        InputError: transformers is not installed; a checkpoint does not say how clips are normalised; weights that do
            not fit.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(f"{name} needs transformers: pip install 'tokensieve[hf]'.") from error
    entry = VIDEO_MODELS.get(name)
    source = entry.checkpoint if entry else name.removeprefix(TRANSFORMERS)
    if not Path(source).is_dir() and (source.count("/") > 1 or source.startswith(("/", ".", "~"))):
        raise InputError(f"There is no folder {source}, and a checkpoint on the Hub is called OWNER/NAME.")
    if entry:
        kind: Any = getattr(transformers, f"{entry.kind}ForVideoClassification")
        config = kind.config_class(**{**entry.settings, **args})
    else:
        config = transformers.AutoConfig.from_pretrained(source, **args)
        kind = _kind(transformers, config, source)
    # A named checkpoint has its own configuration, which knows more than its architecture, such as names of classes.
    settings = args if entry else {"config": config}
    if state is not None:
        model = _loaded(kind, config, state, name)
    elif download:
        with _quiet():
            model = kind.from_pretrained(source, **settings)
    else:
        model = kind(config)
    norm = _normalisation(source) if download or not entry else None
    if norm is None and not entry:
        raise InputError(
            f"{source} says in no {' or '.join(PROCESSORS)} how clips are normalised (image_mean, image_std): add it."
        )
    mean, std = norm or (entry.norm if entry else IMAGENET)
    on_one_device(model).pretrained_cfg = {**(entry.clips if entry else {}), "mean": mean, "std": std}
    return model


def on_one_device(model: Any) -> Any:
    """The model, its table of positions where its weights are: VideoMAE makes it by numpy, on the CPU."""
    if (encoder := getattr(model, "videomae", None)) is not None:
        embeddings = encoder.embeddings
        device = embeddings.patch_embeddings.projection.weight.device
        embeddings.position_embeddings = embeddings.position_embeddings.to(device)
    return model


def _loaded(kind: Any, config: Any, state: Mapping[str, Tensor], name: str) -> Any:
    """A model with these weights, by transformers itself, which knows what older checkpoints call them; mmaction2's
    names of a VideoMAE's are known here."""
    is_published = kind.__name__.startswith("VideoMAE") and is_mmaction2(state)
    if is_published:
        config.layer_norm_eps = EPS
        with torch.device("meta"):
            positions = kind(config).videomae.embeddings.position_embeddings
        state = from_mmaction2(state, positions)
    with _quiet():
        model, info = kind.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, ignore_mismatched_sizes=True
        )
    if is_published:
        model.fc_norm.eps = EPS
    for kind_of_keys, problem in (
        ("missing_keys", "the file has no {}"),
        ("unexpected_keys", "the model has no {}"),
        ("mismatched_keys", "{} has another shape in the file than in the model"),
    ):
        # Keys of other shapes come with the two shapes.
        names = [key if isinstance(key, str) else str(key[0]) for key in info[kind_of_keys]]
        # Older versions have biases of keys, which change nothing: checkpoints leave them out, and they begin at zero.
        if wrong := sorted(name for name in names if not (kind_of_keys == "missing_keys" and name.endswith(KEY_BIAS))):
            raise InputError(f"Cannot load weights into {name}: {problem.format(wrong[0])} ({len(wrong)} such keys).")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports; downloads have bars of their own."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _kind(transformers: Any, config: Any, source: str) -> Any:
    """The class of a checkpoint's model."""
    architecture = (getattr(config, "architectures", None) or ["no class"])[0]
    if not architecture.startswith(READ) or not hasattr(transformers, architecture):
        raise RecipeError(
            f"{source} holds a model of {architecture}: by this name models open that read videos ({', '.join(READ)}); "
            "of others a function returns the model, --model package.module:function."
        )
    return getattr(transformers, architecture)


def _normalisation(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation as a checkpoint's processor states them, of values in [0, 1]."""
    from transformers.utils import cached_file

    quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    for file in PROCESSORS:
        path = cached_file(source, file, **quietly)
        if path is None:
            continue
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} of {source} cannot be read: {first_line(error)}.") from error
        if "image_mean" in config and "image_std" in config:
            mean, std = tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"]))
            if config.get("offset"):  # ViViT's processor has values in [-1, 1] before it normalises them
                mean, std = tuple((1 + m) / 2 for m in mean), tuple(s / 2 for s in std)
            return mean, std
    return None
