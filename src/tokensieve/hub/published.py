"""`HubRecipe`: a recipe or cascade pushed to the Hugging Face Hub and loaded from it, by huggingface_hub's mixin."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, REPOCARD_NAME
from torch import nn

from .._recipe_folder import RECIPE, STORED
from ..cascade_recipe import CascadeRecipe, read_folder, read_recipe, recipe_from_json
from ..errors import InputError, RecipeError, SieveError, first_line
from ..methods import BaseMethod
from ..recipe import Recipe
from .card import is_generated, model_card
from .evaluation import Record, check_evaluation, read_evaluation

EVALUATION = "evaluation.json"
"""File of a repository with the results of the evaluation."""
LIBRARY = "tokensieve"
Parts = nn.ModuleDict | Mapping[str, nn.Module] | None
TYPES: dict[str, tuple[int, ...]] = {"recipe": (1,), "cascade": (1,)}
"""`type` in `config.json` -> the values of `version` that this release reads."""


class HubRecipe(ModelHubMixin):
    """A recipe or a cascade as a repository of the Hugging Face Hub: `push_to_hub`, `save_pretrained`,
    `from_pretrained`.

    The repository has `recipe.json`, its weights as safetensors files, `config.json` with type and version,
    `evaluation.json` if there is an evaluation, and README.md, a model card made from these. The model itself is not in
    it. Loading runs no code: all files are JSON and safetensors, checked before and after the download.

    Args:
        recipe: text, a file, a method, a `Recipe` or a `CascadeRecipe`.
        parts: `fast.parts` of a model sieved with this recipe, whose learned layers are saved in their present state;
            for a cascade `[member.parts for member in fast.members]`. None saves the files named in the recipe.
        evaluation: the output of `tokensieve eval --json` for this recipe, as a dictionary or a file. Paths of this
            machine are not published, except the name of the dataset.
        model: the name of the model for which the recipe is; by default the evaluated one.
        base_model: the repository of this model on the hub, for the card's metadata.
        license: license of the repository in the hub's notation, such as "apache-2.0".
        notes: additional Markdown text for the card, such as training data or limitations.

    Raises:
        InputError: the evaluation cannot be read, or is of another recipe or model.
        RecipeError: the recipe cannot be read.
    """

    _hub_mixin_config = None

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        # not the mixin's, which would write config.json from the arguments; `_save_pretrained` writes it
        return object.__new__(cls)

    def __init__(
        self,
        recipe: Recipe | CascadeRecipe | BaseMethod | str | os.PathLike[str],
        *,
        parts: Parts | Sequence[Parts] = None,
        evaluation: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        model: str | None = None,
        base_model: str | None = None,
        license: str | None = None,
        notes: str | None = None,
    ) -> None:
        self.recipe = read_recipe(recipe)
        self.parts = parts
        self.evaluation: Record | None = None if evaluation is None else read_evaluation(evaluation)
        if self.evaluation is not None:
            check_evaluation(self.evaluation, self.recipe, model)
        self.model = model or (self.evaluation["model"] if self.evaluation else None)
        self.base_model, self.license, self.notes = base_model, license, notes

    def __repr__(self) -> str:
        return f'HubRecipe("{self.recipe}", model={self.model!r})'

    def _save_pretrained(self, save_directory: Path) -> None:
        parts: Any = self.parts
        folder = self.recipe.save_pretrained(save_directory, parts=parts)
        kind = "cascade" if isinstance(self.recipe, CascadeRecipe) else "recipe"
        entries = {"library": LIBRARY, "type": kind, "version": TYPES[kind][-1]}
        entries |= {"model": self.model, "base_model": self.base_model, "license": self.license, "notes": self.notes}
        _write(folder / CONFIG_NAME, {**entries, "evaluation": self.evaluation is not None})
        (folder / EVALUATION).unlink(missing_ok=True)
        if self.evaluation is not None:
            _write(folder / EVALUATION, self.evaluation)
        if is_generated(card := folder / REPOCARD_NAME):
            card.unlink()  # otherwise the mixin would keep the card of the recipe saved here before

    def generate_model_card(self, *, repo_id: str | None = None) -> ModelCard:
        """The text of README.md, with its metadata.

        Args:
            repo_id: the name of the repository, for the code that loads it.
        """
        return model_card(
            self.recipe,
            self.evaluation,
            repo_id=repo_id,
            model=self.model,
            base_model=self.base_model,
            license=self.license,
            notes=self.notes,
        )

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Upload everything as one commit; the repository is created if it does not exist.

        Args:
            repo_id: "you/name".
            settings: keyword arguments of `huggingface_hub.ModelHubMixin.push_to_hub`: `private`, `token`, `branch`,
                `create_pr`, `commit_message`, `delete_patterns` and so on.

        Returns:
            The URL of the commit.

        Raises:
            InputError: the hub refuses the upload or does not answer, or weights are missing.
            RecipeError: the recipe cannot be saved, see `Recipe.save_pretrained`.
        """
        settings = {"commit_message": "A recipe of tokensieve", "model_card_kwargs": {"repo_id": repo_id}, **settings}
        try:
            return super().push_to_hub(repo_id, **settings)
        except (SieveError, TypeError):
            raise
        except Exception as error:  # the client can raise any exception
            raise InputError(f"{repo_id} could not be pushed: {first_line(error)}.") from error

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Load a recipe written by `push_to_hub` or `save_pretrained`; runs no code.

        Only files that the recipe names are downloaded, all of the same commit, and their SHA-256 must be the recorded
        one. Models in the recipe must be names of timm, torchvision or this package.

        Args:
            pretrained_model_name_or_path: a repository, "you/name", or a folder.
            force_download: download files even if they are in the cache.
            token: access token for a private repository; None is that of `hf auth login`.
            cache_dir: folder of the cache; None is the hub's own cache.
            local_files_only: use only the cache, without connecting to the hub.
            revision: a branch, tag or commit; with the hash of a commit the content cannot change later.

        Returns:
            An object with the recipe as `.recipe`, which has the local paths of its weights; `parts` is None.

        Raises:
            InputError: the repository does not exist or cannot be loaded, or weights differ from the recorded ones.
            RecipeError: it is not a recipe, has an unknown type or version, or names something that a downloaded recipe
                may not use.
        """
        source = str(pretrained_model_name_or_path)
        try:
            return super().from_pretrained(
                source,
                force_download=force_download,
                token=token,
                cache_dir=None if cache_dir is None else str(cache_dir),
                local_files_only=local_files_only,
                revision=revision,
            )
        except SieveError:
            raise
        except Exception as error:  # the client can raise any exception
            raise InputError(f"The recipe {source} could not be loaded: {first_line(error)}.") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: Any = None, **download: Any) -> Self:
        remote = {key: download[key] for key in _DOWNLOAD}
        local = os.path.isdir(model_id)
        if config is None and not local:
            hf_hub_download(model_id, CONFIG_NAME, **remote)  # raises an error with the reason
        entries = _checked(config, model_id)
        folder = Path(model_id) if local else _fetch(model_id, remote, evaluated=entries.get("evaluation") is True)
        recipe = read_folder(folder)
        _check_names(recipe, model_id)
        texts = {
            key: entries[key]
            for key in ("model", "base_model", "license", "notes")
            if isinstance(entries.get(key), str)
        }
        return cls(recipe, evaluation=folder / EVALUATION if entries.get("evaluation") is True else None, **texts)


_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _checked(config: Any, source: str) -> Mapping[str, Any]:
    """Return the content of `config.json`; raises RecipeError unless it has a known type and version."""
    if not isinstance(config, Mapping) or config.get("library") != LIBRARY:
        raise RecipeError(
            f'{source} holds no recipe of tokensieve: its {CONFIG_NAME} does not have "library": "{LIBRARY}". Load a '
            "folder of Recipe.save_pretrained by Recipe.from_pretrained."
        )
    kind, version = config.get("type"), config.get("version")
    if not isinstance(kind, str) or kind not in TYPES:
        raise RecipeError(f"{source} is of type {kind!r}; this release reads {', '.join(TYPES)}.")
    if isinstance(version, bool) or version not in TYPES[kind]:
        raise RecipeError(
            f"{source} is a {kind} of version {version!r}; this release reads {', '.join(map(str, TYPES[kind]))}: "
            "update tokensieve."
        )
    return config


def _fetch(repo_id: str, remote: Mapping[str, Any], *, evaluated: bool) -> Path:
    """Download the recipe, and the files that it names from the same commit; returns their local folder."""
    recipe_file = Path(hf_hub_download(repo_id, RECIPE, **remote))
    recipe = recipe_from_json(recipe_file.read_text(encoding="utf-8"))
    _check_names(recipe, repo_id)
    for name in [*recipe.paths(), *([EVALUATION] if evaluated else [])]:
        if name != EVALUATION and not STORED.fullmatch(name):
            raise RecipeError(f"{repo_id} names the weights {name!r}, which save_pretrained does not write.")
        hf_hub_download(repo_id, name, **{**remote, "revision": recipe_file.parent.name})
    return recipe_file.parent


def _check_names(recipe: Recipe | CascadeRecipe, source: str) -> None:
    """Raise RecipeError if a downloaded recipe has paths or URLs, by which other files would be read or downloaded."""
    for method in recipe:
        settings = {key: value for key, value in method.settings().items() if key not in method.files}
        for text in _strings(settings):
            if text == "cache_dir" or any(sign in text.removeprefix("torchvision/") for sign in "/\\:"):
                raise RecipeError(
                    f"{source}: {method.name} names {text!r}. A downloaded recipe may only name models of timm, "
                    "torchvision and tokensieve, and weights in its own folder. If you trust it, use Recipe.load."
                )


def _strings(value: Any) -> Iterator[str]:
    """All strings in a setting, including the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (*_strings(key), *_strings(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
