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
"""What its version is called, by which it is told from a recipe."""
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names of precisions -> of torch's data types."""
PREPROCESSINGS = ("timm", "papers")


class OpenedModel(NamedTuple):
    """A dense model, the sieved model that shares its weights, and the preprocessing of both.

    Attributes:
        dense: the host, in evaluation mode.
        fast: what `sieve` made of it. `fast.recipe` is the recipe that acts, with the SHA-256 of its weights.
        preprocessing: what makes a picture, or a video, the tensor that both read.
    """

    dense: nn.Module
    fast: Sieved
    preprocessing: Preprocessing | VideoPreprocessing

    @property
    def device(self) -> torch.device:
        """Where the model and its images are."""
        return next(self.dense.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model and of its images."""
        return next(self.dense.parameters()).dtype

    @property
    def input_spec(self) -> InputSpec:
        """The shape of one picture, or of one clip, as both read it."""
        from .data.inputs import own_input

        return own_input(self.dense, self.preprocessing.reads)

    @property
    def views(self) -> int:
        """How many clips, crops counted, are read of a video; 1 of a picture."""
        from .data import VideoPreprocessing, Views

        preprocessing = self.preprocessing
        return Views.parse(preprocessing.views).total if isinstance(preprocessing, VideoPreprocessing) else 1


@dataclass(frozen=True)
class ModelSpec:
    """Everything that says which model runs how: frozen, picklable, JSON-able; `open` makes the models.

    Making one reads no weights and builds no model, so that it can be made where neither is at hand. Opening it twice
    gives the same answers, in one process or two, unless weights are random (`pretrained=False` without files).

    Args:
        model: a name that the zoo, timm or torchvision knows; the file of a segmenter that was trained here,
            "NAME.safetensors" with NAME.json beside it, or "nano_segmenter"; or the import path of a callable that
            returns a model, "package.module:function". `open` runs that callable: open only what you trust.
        recipe: text, a recipe file, a method, a `Recipe`, or a cascade as text, file or `CascadeRecipe`; kept as text.
            None lets `open` choose what the commands choose (`search.default.default_recipe`), or `papr(keep=0.65)`
            where `proposal_weights` are given.
        weights: a file of the model's weights, loaded strictly; None takes those that the name or the callable has.
        pretrained: whether weights that no file gives are downloaded, of a named model and of named proposals; they
            are random otherwise.
        proposal_weights: a file of weights for the proposals that the recipe names.
        precision: of the model, "fp32", "bf16" or "fp16", or torch's names of them.
        device: "cpu", "cuda", "cuda:0" and so on, or "auto", which is a GPU if there is one where it is opened.
        size: of the images, a side in pixels, (height, width), or "224x256"; None is what the model was built for.
        preprocessing: "timm", what the model states; "papers", what the PaPr evaluations do; or a `Preprocessing`, of a
            model that reads videos a `VideoPreprocessing`, which a model that states no normalisation needs. Its size
            then is the model's too.
        clips: of a model that reads videos, what is to be otherwise than it states: any of `frames`, `stride`,
            `sampling`, `views`, `short_side` of `VideoPreprocessing`.
        args: keyword arguments of the model's constructor or of the callable: plain JSON.
        sha256: path -> SHA-256 of files that are named here. Others are refused by `open`. `with_hashes` fills it.

    Paths are relative to the working directory; `absolute` makes them full ones.

    Raises:
        InputError: a setting that makes no sense.
        RecipeError: the recipe cannot be read, holds a module or a tensor, or has no use for `proposal_weights`.
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

    if TYPE_CHECKING:  # what it is made of may be spelled in more ways than it is kept in

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
        from . import _spec_settings as read

        recipe = None if self.recipe is None else read.recipe(self.recipe)
        sha256 = read.sha256(self.sha256)
        settings: dict[str, Any] = {
            "model": read.model(self.model),
            "recipe": None if recipe is None else str(recipe),
            "weights": read.path("weights", self.weights),
            "pretrained": read.flag("pretrained", self.pretrained),
            "proposal_weights": read.path("proposal_weights", self.proposal_weights),
            "precision": read.precision(self.precision, PRECISIONS),
            "device": read.device(self.device),
            "preprocessing": read.preprocessing(self.preprocessing, PREPROCESSINGS),
            "args": read.args(self.args),
            "sha256": sha256,
        }
        settings["size"] = read.size(self.size, settings["preprocessing"])
        settings["clips"] = read.clips(self.clips, settings["preprocessing"])
        for name, value in settings.items():
            object.__setattr__(self, name, value)
        files = self.files()
        for path, digest in ({} if recipe is None else read.recorded_hashes(recipe)).items():
            if path in files:  # `proposal_weights` may have taken its place
                sha256.setdefault(path, digest)
        if strangers := [path for path in sha256 if path not in files]:
            raise SettingError("sha256", f"names {strangers[0]}, which is no file of this model or its recipe.")

    @property
    def recipe_is_default(self) -> bool:
        """Whether `open` chooses the recipe."""
        return self.recipe is None and self.proposal_weights is None

    @property
    def model_is_callable(self) -> bool:
        """Whether `model` is the import path of a callable, which says itself what weights its model has."""
        return ":" in self.model

    @property
    def model_is_file(self) -> bool:
        """Whether `model` is the file of a segmenter that was trained here."""
        return self.model.endswith(".safetensors")

    def torch_device(self) -> torch.device:
        """The `torch.device` on this machine, with "auto" resolved. Raises `InputError` if there is no such device."""
        from ._spec_settings import torch_device

        return torch_device(self.device)

    def parsed_recipe(self) -> Recipe | CascadeRecipe | None:
        """The recipe, or the cascade, with the proposal's weights and the recorded SHA-256 in it; None where `open`
        chooses one."""
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
        """The files that are named: of the model and its weights, of the recipe's proposals, of its methods."""
        recipe = self.parsed_recipe()
        paths = [*self._own_files(), *([] if recipe is None else recipe.paths())]
        return list(dict.fromkeys(paths))

    def _own_files(self) -> list[str]:
        """Of the model alone: how a trained segmenter is built, and weights."""
        built = [str(Path(self.model).with_suffix(ending)) for ending in (".safetensors", ".json")]
        paths = built if self.model_is_file else []
        return paths if self.weights is None else [*paths, self.weights]

    def check(self) -> None:
        """Refuse what could not be opened here, before anything slow begins: no such file, no such device.

        Raises `InputError`.
        """
        from ._spec_settings import check_files

        self.torch_device()
        check_files(self.files())

    def open(self) -> OpenedModel:
        """Build the dense model with its size, precision and device, and sieve it.

        Reads nothing but what is described here, and changes no setting of the process.

        Raises:
            InputError: weights cannot be had, are not those that are recorded, or do not fit; a size or a device that
                is none; a callable that cannot be imported, fails, or returns no model.
            RecipeError: neither the zoo nor a library knows the model's name; arguments that it does not take.
            UnsupportedHost: the model cannot take this recipe.
        """
        import torch

        from . import _spec_models as models
        from . import hosts  # noqa: F401 - hosts state what their models read

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
        """The same around a model that is there: under this description's recipe, or another one.

        Args:
            dense: the model, in its precision and place, as `open().dense` is.
            preprocessing: how it reads images or videos, which says the normalisation that a proposal starts from.
            recipe: instead of the one described.

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
        """The same under another recipe, which has its own weights: `proposal_weights` were the former one's."""
        kept = {path: digest for path, digest in self.sha256.items() if path in self._own_files()}
        changed: dict[str, Any] = {"recipe": recipe, "proposal_weights": None, "sha256": kept}
        return replace(self, **changed)

    def with_hashes(self) -> ModelSpec:
        """The same, bound to the files as they are now: with the SHA-256 of all of them, which `open` checks.

        Raises:
            InputError: a file is not there.
        """
        from .zoo import file_sha256

        digests = {path: self.sha256.get(path) or file_sha256(path) for path in self.files()}
        return replace(self, sha256=digests)

    def absolute(self) -> ModelSpec:
        """The same with full paths, for a process with another working directory."""
        return self._with_paths(os.path.abspath)

    def to_json(self, folder: str | os.PathLike[str] | None = None) -> str:
        """Every setting, with a version and the SHA-256 of all files; `from_json` gives back an equal description.

        Args:
            folder: where the paths in it shall begin; None leaves them as they are, for the working directory.

        Raises:
            InputError: a file is not there.
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
        """Read what `to_json` wrote; runs no code and reads no file. Settings that are left out keep their defaults.

        Args:
            text: JSON.
            folder: where the paths in it begin; None is the working directory.

        Raises:
            InputError: it is no JSON of a model, of another version, or has a setting that there is not.
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

            data["recipe"] = parse_recipe(recipe)  # the text itself: JSON never has another file read
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
