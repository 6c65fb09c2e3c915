"""transformers' video models, created from a short name, the name of a checkpoint, or a folder.

transformers is imported only when such a model is requested.
"""

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
"""Prefix for the name of a checkpoint on the Hugging Face Hub, or of a folder that holds a checkpoint."""
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
"""Files of a checkpoint that hold the mean and standard deviation of its clips."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
KEY_BIAS = "attention.attention.key.bias"
FAMILIES = ("VideoMAE", "Vivit", "VJEPA2")
"""Prefixes of the supported model classes."""


class VideoModel(NamedTuple):
    """A video architecture and its checkpoint on the Hub."""

    kind: str
    """The prefix KIND of transformers' classes KINDConfig and KINDForVideoClassification."""
    checkpoint: str
    settings: Mapping[str, Any]
    """Entries of the configuration that differ from its defaults."""
    norm: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    """Mean and standard deviation of clips per channel, for values in [0, 1]."""
    clips: Mapping[str, Any] = {}
    """Arguments of `VideoPreprocessing` for this model."""


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
"""Short name -> model; `create` makes these with random weights or with those of the checkpoint."""


def is_video_model(name: str) -> bool:
    """Whether `build` can create a model of this name."""
    return name in VIDEO_MODELS or name.startswith(TRANSFORMERS)


def build(
    name: str, args: Mapping[str, Any], *, download: bool, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Create a video model. Its `pretrained_cfg` holds mean, standard deviation and, if known, how clips are sampled.

    Args:
        name: a name in `VIDEO_MODELS`, or "transformers/" and the name of a checkpoint on the Hub or a folder.
        args: entries of the configuration to change.
        download: load the checkpoint's weights; False: random weights.
        state: a state dict to load instead, with transformers' names, or with mmaction2's for VideoMAE.

    Raises:
        RecipeError: the checkpoint is not one of a supported video model.
        InputError: transformers is not installed; the checkpoint has no mean and standard deviation; weights do not
            fit.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(f"{name} needs transformers: pip install 'tokensieve[hf]'.") from error
    entry = VIDEO_MODELS.get(name)
    source = entry.checkpoint if entry else name.removeprefix(TRANSFORMERS)
    if not Path(source).is_dir() and (source.count("/") > 1 or source.startswith(("/", ".", "~"))):
        raise InputError(f"There is no folder {source}. The name of a checkpoint on the Hub has the form OWNER/NAME.")
    if entry:
        kind: Any = getattr(transformers, f"{entry.kind}ForVideoClassification")
        config = kind.config_class(**{**entry.settings, **args})
    else:
        config = transformers.AutoConfig.from_pretrained(source, **args)
        kind = _kind(transformers, config, source)
    # For a short name, from_pretrained loads the checkpoint's own configuration, which also has names of classes.
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
            f"{source} has no {' or '.join(PROCESSORS)} that gives the mean and standard deviation of clips "
            "(image_mean, image_std): add it."
        )
    mean, std = norm or (entry.norm if entry else IMAGENET)
    on_one_device(model).pretrained_cfg = {**(entry.clips if entry else {}), "mean": mean, "std": std}
    return model


def on_one_device(model: Any) -> Any:
    """Move VideoMAE's position table to the device of the weights (transformers creates it with numpy, on the CPU), and
    return the model."""
    if (encoder := getattr(model, "videomae", None)) is not None:
        embeddings = encoder.embeddings
        device = embeddings.patch_embeddings.projection.weight.device
        embeddings.position_embeddings = embeddings.position_embeddings.to(device)
    return model


def _loaded(kind: Any, config: Any, state: Mapping[str, Tensor], name: str) -> Any:
    """A model with these weights. transformers maps the names of its older checkpoints; mmaction2's names of VideoMAE
    weights are mapped here."""
    from_mmaction = kind.__name__.startswith("VideoMAE") and is_mmaction2(state)
    if from_mmaction:
        config.layer_norm_eps = EPS
        with torch.device("meta"):
            positions = kind(config).videomae.embeddings.position_embeddings
        state = from_mmaction2(state, positions)
    with _quiet():
        model, info = kind.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, ignore_mismatched_sizes=True
        )
    if from_mmaction:
        model.fc_norm.eps = EPS
    for kind_of_keys, problem in (
        ("missing_keys", "the file has no {}"),
        ("unexpected_keys", "the model has no {}"),
        ("mismatched_keys", "{} has another shape in the file than in the model"),
    ):
        # each entry of "mismatched_keys" is a tuple of the key and its two shapes
        names = [key if isinstance(key, str) else str(key[0]) for key in info[kind_of_keys]]
        # Older transformers has a bias for keys, which does not affect attention; checkpoints omit it, it starts at 0.
        wrong = sorted(key for key in names if not (kind_of_keys == "missing_keys" and key.endswith(KEY_BIAS)))
        if wrong:
            raise InputError(f"Cannot load weights into {name}: {problem.format(wrong[0])} ({len(wrong)} such keys).")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off transformers' progress bars and warnings; the bars of downloads stay."""
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
    """The model class of a checkpoint."""
    architecture = (getattr(config, "architectures", None) or ["no class"])[0]
    if not architecture.startswith(FAMILIES) or not hasattr(transformers, architecture):
        raise RecipeError(
            f"{source} holds a {architecture}: 'transformers/NAME' opens video models only ({', '.join(FAMILIES)}). "
            "For other models write a function that returns the model, and give --model package.module:function."
        )
    return getattr(transformers, architecture)


def _normalisation(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation from a checkpoint's processor file, for values in [0, 1]; None if it has none."""
    from transformers.utils import cached_file

    no_exceptions = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    for file in PROCESSORS:
        path = cached_file(source, file, **no_exceptions)
        if path is None:
            continue
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} of {source} cannot be read: {first_line(error)}.") from error
        if "image_mean" in config and "image_std" in config:
            mean, std = tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"]))
            if config.get("offset"):  # ViViT's processor scales values to [-1, 1] before it normalises them
                mean, std = tuple((1 + m) / 2 for m in mean), tuple(s / 2 for s in std)
            return mean, std
    return None
