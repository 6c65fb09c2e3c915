"""`ModelSpec`: a model and its recipe as plain data, to open in any process, from a file or from a command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._files import joined_path, relative_path
from .errors import InputError, SettingError, nearest

if TYPE_CHECKING:  # heavy imports wait until a spec is made, so that --help answers at once
    import torch
    from torch import nn

    from .cascade_recipe import CascadeRecipe
    from .data import Preprocessing, VideoPreprocessing
    from .data.inputs import InputSpec
    from .methods import BaseMethod
    from .recipe import Recipe
    from .stream import Sieved

VERSION = 1
"""Version of the JSON that `ModelSpec.to_json` writes."""
VERSION_KEY = "tokensieve_model"
"""Key of the version in the JSON; it distinguishes a model's file from a recipe."""
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Short name of a precision -> name of torch's data type."""
PREPROCESSINGS = ("timm", "papers")


class OpenedModel(NamedTuple):
    """A dense model, the sieved model that shares its weights, and the preprocessing of both.

    Attributes:
        dense: the host, in evaluation mode.
        fast: the sieved model. `fast.recipe` is its recipe, with the SHA-256 of the weights.
        preprocessing: turns a picture or a video into the tensor that both models read.
    """

    dense: nn.Module
    fast: Sieved
    preprocessing: Preprocessing | VideoPreprocessing

    @property
    def device(self) -> torch.device:
        """The device of the model and of its images."""
        return next(self.dense.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model and of its images."""
        return next(self.dense.parameters()).dtype

    @property
    def input_spec(self) -> InputSpec:
        """The shape of one picture, or of one clip, as both models read it."""
        from .data.inputs import own_input

        return own_input(self.dense, self.preprocessing.reads)

    @property
    def views(self) -> int:
        """Number of clips times crops read from each video; 1 for pictures."""
        from .data import VideoPreprocessing, Views

        preprocessing = self.preprocessing
        return Views.parse(preprocessing.views).total if isinstance(preprocessing, VideoPreprocessing) else 1


@dataclass(frozen=True)
class ModelSpec:
    """A model and the way it is run, as plain data: frozen, picklable, writable as JSON. `open` builds the models.

    Creating a spec reads no weights and builds no model, so it works where neither is available. Opening it twice
    gives the same outputs, in one process or two, unless weights are random (`pretrained=False` without files).

    Args:
        model: a name that the zoo, timm or torchvision knows; the file of a segmenter trained by tokensieve,
            "NAME.safetensors" with NAME.json beside it, or "nano_segmenter"; or the import path of a callable that
            returns a model, "package.module:function". `open` runs that callable: open only what you trust.
        recipe: text, a recipe file, a method, a `Recipe`, or a cascade as text, file or `CascadeRecipe`; stored as
            text. With None, `open` chooses the default recipe (`search.default.default_recipe`), or `papr(keep=0.65)`
            if `proposal_weights` are given.
        weights: a file of the model's weights, loaded strictly; None: the pretrained weights of the named model, or
            those that the callable loads.
        pretrained: whether weights without a file are downloaded, for a named model and for named proposals; if not,
            they are random.
        proposal_weights: a file of weights for the proposals that the recipe names.
        precision: precision of the model, "fp32", "bf16" or "fp16", or torch's names for these.
        device: "cpu", "cuda", "cuda:0" and so on, or "auto": a GPU if the machine that opens the spec has one.
        size: size of the images, a side in pixels, (height, width), or "224x256"; None is the model's default.
        preprocessing: "timm", that of the model's configuration; "papers", that of the PaPr evaluations; or a
            `Preprocessing` (`VideoPreprocessing` for a model that reads videos), which is needed for a model without
            a known normalisation. Its input size is then the model's too.
        clips: for a model that reads videos, settings to change: any of `frames`, `stride`, `sampling`, `views`,
            `short_side` of `VideoPreprocessing`.
        args: keyword arguments of the model's constructor or of the callable: plain JSON.
        sha256: path -> SHA-256 of the files named in this spec. `open` refuses a file with another SHA-256.
            `with_hashes` fills it.

    Paths are relative to the working directory; `absolute` makes them absolute.

    Raises:
        InputError: an invalid setting.
        RecipeError: the recipe cannot be read, holds a module or a tensor, or has no proposal for `proposal_weights`.
    """

    model: str
    recipe: str | None = None
    weights: str | None = None
    pretrained: bool = True
    proposal_weights: str | None = None
    precision: str = "fp32"
    device: str = "cpu"
    size: tuple[int, int] | None = None
    preprocessing: str | Preprocessing | VideoPreprocessing = "timm"
    clips: Mapping[str, Any] = field(default_factory=dict, hash=False)
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)

    if TYPE_CHECKING:  # the constructor accepts more types than the fields store

        def __init__(
            self,
            model: str,
            recipe: str | os.PathLike[str] | BaseMethod | Recipe | CascadeRecipe | None = None,
            weights: str | os.PathLike[str] | None = None,
            pretrained: bool = True,
            proposal_weights: str | os.PathLike[str] | None = None,
            precision: str | torch.dtype = "fp32",
            device: str | torch.device = "cpu",
            size: int | str | tuple[int, int] | None = None,
            preprocessing: str | Mapping[str, Any] | Preprocessing | VideoPreprocessing = "timm",
            clips: Mapping[str, Any] = {},
            args: Mapping[str, Any] = {},
            sha256: Mapping[str, str] = {},
        ) -> None: ...

    def __post_init__(self) -> None:
        from . import _spec_settings as checked

        recipe = None if self.recipe is None else checked.recipe(self.recipe)
        sha256 = checked.sha256(self.sha256)
        settings: dict[str, Any] = {
            "model": checked.model(self.model),
            "recipe": None if recipe is None else str(recipe),
            "weights": checked.path("weights", self.weights),
            "pretrained": checked.flag("pretrained", self.pretrained),
            "proposal_weights": checked.path("proposal_weights", self.proposal_weights),
            "precision": checked.precision(self.precision, PRECISIONS),
            "device": checked.device(self.device),
            "preprocessing": checked.preprocessing(self.preprocessing, PREPROCESSINGS),
            "args": checked.args(self.args),
            "sha256": sha256,
        }
        settings["size"] = checked.size(self.size, settings["preprocessing"])
        settings["clips"] = checked.clips(self.clips, settings["preprocessing"])
        for name, value in settings.items():
            object.__setattr__(self, name, value)
        files = self.files()
        for path, digest in ({} if recipe is None else checked.recorded_hashes(recipe)).items():
            if path in files:  # `proposal_weights` may have replaced it
                sha256.setdefault(path, digest)
        if unknown := [path for path in sha256 if path not in files]:
            raise SettingError("sha256", f"names {unknown[0]}, which is not a file of this model or its recipe.")

    @property
    def recipe_is_default(self) -> bool:
        """Whether `open` chooses the recipe."""
        return self.recipe is None and self.proposal_weights is None

    @property
    def model_is_callable(self) -> bool:
        """Whether `model` is the import path of a callable, which loads the weights of its model itself."""
        return ":" in self.model

    @property
    def model_is_file(self) -> bool:
        """Whether `model` is the file of a segmenter trained by tokensieve."""
        return self.model.endswith(".safetensors")

    def torch_device(self) -> torch.device:
        """The `torch.device` on this machine, with "auto" resolved. Raises `InputError` if there is no such device."""
        from ._spec_settings import torch_device

        return torch_device(self.device)

    def parsed_recipe(self) -> Recipe | CascadeRecipe | None:
        """The recipe or cascade, with the proposal's weights and the recorded SHA-256 filled in; None if `open`
        chooses the recipe."""
        from ._spec_settings import with_hashes, with_proposal_weights
        from .cascade_recipe import parse_recipe
        from .search.default import RANKED

        if self.recipe_is_default:
            return None
        recipe = parse_recipe(RANKED if self.recipe is None else self.recipe)
        if self.proposal_weights is not None:
            recipe = with_proposal_weights(recipe, self.proposal_weights)
        return with_hashes(recipe, self.sha256)

    def files(self) -> list[str]:
        """The files that the spec names: the model's own, its weights, and the weights of proposals and methods."""
        recipe = self.parsed_recipe()
        paths = [*self._own_files(), *([] if recipe is None else recipe.paths())]
        return list(dict.fromkeys(paths))

    def _own_files(self) -> list[str]:
        """The files of the model alone: those of a trained segmenter, and the weights."""
        segmenter_files = [str(Path(self.model).with_suffix(ending)) for ending in (".safetensors", ".json")]
        paths = segmenter_files if self.model_is_file else []
        return paths if self.weights is None else [*paths, self.weights]

    def check(self) -> None:
        """Check that all files and the device exist, before anything slow begins.

        Raises:
            InputError: a file or the device does not exist.
        """
        from ._spec_settings import check_files

        self.torch_device()
        check_files(self.files())

    def open(self) -> OpenedModel:
        """Build the dense model with its size, precision and device, and sieve it.

        Depends only on this spec, and changes no global setting.

        Raises:
            InputError: weights cannot be loaded, have another SHA-256, or do not fit the model; an invalid size or
                device; a callable that cannot be imported, fails, or does not return a model.
            RecipeError: neither the zoo nor a library knows the model's name, or it does not take the arguments.
            UnsupportedHost: the model cannot take this recipe.
        """
        import torch

        from . import _spec_models as models
        from . import hosts  # noqa: F401 - importing it registers the input specs of all hosts

        self.check()
        loaded = models.load(self.model, self.args, self.weights, self.sha256, pretrained=self.pretrained)
        size = self.size if isinstance(self.preprocessing, str) else self.preprocessing.input_size
        models.set_size(loaded.model, size, self.model)
        preprocessing = models.preprocessing(loaded, self.preprocessing, size, self.clips, self.model)
        dense = loaded.model.to(self.torch_device(), getattr(torch, PRECISIONS[self.precision]))
        return self.sieve(dense, preprocessing)

    def sieve(
        self,
        dense: nn.Module,
        preprocessing: Preprocessing | VideoPreprocessing,
        recipe: Recipe | CascadeRecipe | None = None,
    ) -> OpenedModel:
        """Sieve a model that is already built, with this spec's recipe or another one.

        Args:
            dense: the model, in its precision and on its device, as `open().dense`.
            preprocessing: its preprocessing, whose normalisation a proposal needs to know.
            recipe: replaces the recipe of this spec.

        Raises:
            UnsupportedHost, RecipeError, InputError: as `tokensieve.sieve` does.
        """
        from .search.default import default_recipe
        from .stream import sieve

        recipe = self.parsed_recipe() if recipe is None else recipe
        if recipe is None:
            recipe = default_recipe(dense, preprocessing.reads)
        fast = sieve(dense, recipe, mean=preprocessing.mean, std=preprocessing.std, pretrained=self.pretrained)
        return OpenedModel(dense, fast.to(next(dense.parameters()).device), preprocessing)

    def with_recipe(self, recipe: str | os.PathLike[str] | BaseMethod | Recipe | CascadeRecipe | None) -> ModelSpec:
        """The same spec with another recipe. `proposal_weights` belonged to the old recipe and become None."""
        model_hashes = {path: digest for path, digest in self.sha256.items() if path in self._own_files()}
        changed: dict[str, Any] = {"recipe": recipe, "proposal_weights": None, "sha256": model_hashes}
        return replace(self, **changed)

    def with_hashes(self) -> ModelSpec:
        """The same spec with the SHA-256 of all its files, which `open` then checks.

        Raises:
            InputError: a file does not exist.
        """
        from .zoo import file_sha256

        digests = {path: self.sha256.get(path) or file_sha256(path) for path in self.files()}
        return replace(self, sha256=digests)

    def absolute(self) -> ModelSpec:
        """The same spec with absolute paths, for a process with another working directory."""
        return self._with_paths(os.path.abspath)

    def to_json(self, folder: str | os.PathLike[str] | None = None) -> str:
        """JSON with every setting, a version and the SHA-256 of all files; `from_json` returns an equal spec.

        Args:
            folder: paths are written relative to this folder; None leaves them as they are, relative to the working
                directory.

        Raises:
            InputError: a file does not exist.
        """

        def spell(path: str) -> str:
            return (path if folder is None else relative_path(path, folder)).replace(os.sep, "/")

        spec = self.with_hashes()._with_paths(spell)
        settings = {field.name: getattr(spec, field.name) for field in fields(spec)}
        if not isinstance(spec.preprocessing, str):
            settings["preprocessing"] = asdict(spec.preprocessing)
        return json.dumps({VERSION_KEY: VERSION, **settings}, indent=2)

    @classmethod
    def from_json(cls, text: str, folder: str | os.PathLike[str] | None = None) -> ModelSpec:
        """Read the JSON of `to_json`; runs no code and reads no file. Missing settings have their defaults.

        Args:
            text: JSON.
            folder: the folder that paths in the JSON are relative to; None is the working directory.

        Raises:
            InputError: the text is not the JSON of a spec, has another version, or has an unknown setting.
            RecipeError: its recipe cannot be read.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"The model's description is not JSON: {error}.") from None
        if not isinstance(data, dict) or VERSION_KEY not in data or "model" not in data:
            raise InputError(f'A model\'s description is an object like {{"{VERSION_KEY}": 1, "model": "nano_vit"}}.')
        if (version := data.pop(VERSION_KEY)) != VERSION:
            raise InputError(
                f"The model's description has version {version!r}; this release reads version {VERSION}: update "
                "tokensieve, or write it again with this release."
            )
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise InputError(f"A model's description has no setting {key!r}{nearest(key, known)}.")
        recipe = data.get("recipe")
        if not isinstance(recipe, str | None):
            raise SettingError("recipe", f"must be text such as 'papr(keep=0.5)', not {recipe!r}.")
        if recipe is not None:
            from .cascade_recipe import parse_recipe

            data["recipe"] = parse_recipe(recipe)  # always text: the JSON must not make us read another file
        spec = cls(**data)
        return spec if folder is None else spec._with_paths(partial(joined_path, folder=folder))

    def _with_paths(self, change: Callable[[str], str]) -> ModelSpec:
        from .cascade_recipe import parse_recipe

        recipe = None if self.recipe is None else parse_recipe(self.recipe).with_paths(change)
        changed: dict[str, Any] = {"recipe": recipe}
        for name in ("weights", "proposal_weights"):
            path = getattr(self, name)
            changed[name] = None if path is None else change(path)
        if self.model_is_file:
            changed["model"] = change(self.model)
        changed["sha256"] = {change(path): digest for path, digest in self.sha256.items()}
        return replace(self, **changed)
