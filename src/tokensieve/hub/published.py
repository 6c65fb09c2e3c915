"""`HubRecipe`: a recipe that is pushed to the Hugging Face Hub and read from there, by its own client's mixin."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, REPOCARD_NAME
from torch import nn

from .._recipe_folder import RECIPE, STORED
from ..errors import InputError, RecipeError, SieveError, first_line
from ..methods import BaseMethod
from ..recipe import Recipe
from .card import is_ours, model_card
from .evaluation import Record, check_evaluation, read_evaluation

EVALUATION = "evaluation.json"
"""What was measured, beside the recipe."""
LIBRARY, TYPE = "tokensieve", "recipe"
TYPES: dict[str, tuple[int, ...]] = {TYPE: (1,)}
"""What `config.json` may say a folder is -> the versions of it that this release reads."""


class HubRecipe(ModelHubMixin):
    """A recipe as a repository of the Hugging Face Hub: `push_to_hub`, `save_pretrained` and `from_pretrained`.

    The repository holds `recipe.json`, its weights as safetensors files, `config.json` with type and version,
    `evaluation.json` where it was measured, and README.md, a model card made of these. The model that the recipe is
    for is not in it. Reading one runs no code: it is JSON and safetensors, checked before and after they come down.

    Args:
        recipe: text, a file, a method or a `Recipe`.
        parts: `fast.parts` of a model sieved with this recipe, whose learned layers are stored as they are now; None
            takes the files that the recipe names.
        evaluation: what `tokensieve eval --json` printed for this recipe, as a dictionary or its file. What is stored
            of it names no files and folders of this machine but the data's own name.
        model: the name of the model that the recipe is for; default the evaluated one.
        base_model: the repository on the hub that has this model, for the card's metadata.
        license: of what is published, as the hub spells it, such as "apache-2.0".
        notes: more text for the card, Markdown: what it was trained on, what it is not for.

    Raises:
        InputError: the evaluation cannot be read, or is of another recipe or model.
        RecipeError: the recipe cannot be read.
    """

    _hub_mixin_config = None

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        return object.__new__(cls)  # the mixin would make config.json of the arguments; `_save_pretrained` writes it

    def __init__(
        self,
        recipe: Recipe | BaseMethod | str | os.PathLike[str],
        *,
        parts: nn.ModuleDict | Mapping[str, nn.Module] | None = None,
        evaluation: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        model: str | None = None,
        base_model: str | None = None,
        license: str | None = None,
        notes: str | None = None,
    ) -> None:
        self.recipe = Recipe.of(recipe)
        self.parts = parts
        self.evaluation: Record | None = None if evaluation is None else read_evaluation(evaluation)
        if self.evaluation is not None:
            check_evaluation(self.evaluation, self.recipe, model)
        self.model = model or (self.evaluation["model"] if self.evaluation else None)
        self.base_model, self.license, self.notes = base_model, license, notes

    def __repr__(self) -> str:
        return f'HubRecipe("{self.recipe}", model={self.model!r})'

    def _save_pretrained(self, save_directory: Path) -> None:
        folder = self.recipe.save_pretrained(save_directory, parts=self.parts)
        entries = {"library": LIBRARY, "type": TYPE, "version": TYPES[TYPE][-1]}
        entries |= {"model": self.model, "base_model": self.base_model, "license": self.license, "notes": self.notes}
        _write(folder / CONFIG_NAME, {**entries, "evaluation": self.evaluation is not None})
        (folder / EVALUATION).unlink(missing_ok=True)
        if self.evaluation is not None:
            _write(folder / EVALUATION, self.evaluation)
        if is_ours(card := folder / REPOCARD_NAME):
            card.unlink()  # else the mixin would leave the figures of the recipe that was here before

    def generate_model_card(self, *, repo_id: str | None = None) -> ModelCard:
        """The text of README.md, with its metadata.

        Args:
            repo_id: what the repository is called, for the lines that open it.
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
        """Upload everything as one commit; the repository is made where it is not there.

        Args:
            repo_id: "you/name".
            settings: of `huggingface_hub.ModelHubMixin.push_to_hub`: `private`, `token`, `branch`, `create_pr`,
                `commit_message`, `delete_patterns` and so on.

        Returns:
            The address of the commit.

        Raises:
            InputError: the hub refuses it or does not answer, or weights are not there.
            RecipeError: the recipe cannot be stored: see `Recipe.save_pretrained`.
        """
        settings = {"commit_message": "A recipe of tokensieve", "model_card_kwargs": {"repo_id": repo_id}, **settings}
        try:
            return super().push_to_hub(repo_id, **settings)
        except (SieveError, TypeError):
            raise
        except Exception as error:  # the client raises whatever its many parts raise
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
        """Read what `push_to_hub` or `save_pretrained` wrote; runs no code.

        Type and version have to be known ones. Only the files that the recipe names are downloaded, all of one commit,
        and their SHA-256 has to be the recorded one. Models that the recipe names must be plain names that timm,
        torchvision or this package knows.

        Args:
            pretrained_model_name_or_path: a repository, "you/name", or a folder.
            force_download: even what was downloaded before.
            token: to read a private repository with; None is that of `hf auth login`.
            cache_dir: where files are kept; None is the hub's own cache.
            local_files_only: ask no hub, take what was downloaded before.
            revision: a branch, tag or commit; a commit's hash makes sure that nothing changes later.

        Returns:
            The recipe, as `.recipe`, with the paths of its weights on this machine; `parts` is None.

        Raises:
            InputError: it is not there, cannot be had, or weights are others than those recorded.
            RecipeError: it is no recipe, of an unknown version, or names what a recipe from elsewhere must not.
        """
        where = str(pretrained_model_name_or_path)
        try:
            return super().from_pretrained(
                where,
                force_download=force_download,
                token=token,
                cache_dir=None if cache_dir is None else str(cache_dir),
                local_files_only=local_files_only,
                revision=revision,
            )
        except SieveError:
            raise
        except Exception as error:  # the client raises whatever its many parts raise
            raise InputError(f"The recipe {where} could not be had: {first_line(error)}.") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: Any = None, **download: Any) -> Self:
        remote = {key: download[key] for key in _DOWNLOAD}
        local = os.path.isdir(model_id)
        if config is None and not local:
            hf_hub_download(model_id, CONFIG_NAME, **remote)  # says why it cannot be had
        entries = _checked(config, model_id)
        folder = Path(model_id) if local else _fetch(model_id, remote, evaluated=entries.get("evaluation") is True)
        recipe = Recipe.from_pretrained(folder)
        _check_words(recipe, model_id)
        texts = {
            key: entries[key]
            for key in ("model", "base_model", "license", "notes")
            if isinstance(entries.get(key), str)
        }
        return cls(recipe, evaluation=folder / EVALUATION if entries.get("evaluation") is True else None, **texts)


_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _checked(config: Any, where: str) -> Mapping[str, Any]:
    """`config.json`, if it says that this is a recipe of a version that is known."""
    if not isinstance(config, Mapping) or config.get("library") != LIBRARY:
        raise RecipeError(
            f"{where} holds no recipe of tokensieve: its {CONFIG_NAME} does not say so. A folder of "
            "Recipe.save_pretrained is read by Recipe.from_pretrained."
        )
    kind, version = config.get("type"), config.get("version")
    if not isinstance(kind, str) or kind not in TYPES:
        raise RecipeError(f"{where} is of type {kind!r}; this release reads {', '.join(TYPES)}.")
    if isinstance(version, bool) or version not in TYPES[kind]:
        raise RecipeError(
            f"{where} is a {kind} of version {version!r}; this release reads {', '.join(map(str, TYPES[kind]))}: "
            "update tokensieve."
        )
    return config


def _fetch(repo_id: str, remote: Mapping[str, Any], *, evaluated: bool) -> Path:
    """Download the recipe, and of the same commit the files that it names; the folder where they lie."""
    recipe_file = Path(hf_hub_download(repo_id, RECIPE, **remote))
    recipe = Recipe.from_json(recipe_file.read_text(encoding="utf-8"))
    _check_words(recipe, repo_id)
    for name in [*recipe.paths(), *([EVALUATION] if evaluated else [])]:
        if name != EVALUATION and not STORED.fullmatch(name):
            raise RecipeError(f"{repo_id} names the weights {name!r}, which save_pretrained does not write.")
        hf_hub_download(repo_id, name, **{**remote, "revision": recipe_file.parent.name})
    return recipe_file.parent


def _check_words(recipe: Recipe, where: str) -> None:
    """Refuse a recipe from elsewhere that would have files read or downloaded which nobody here named."""
    for method in recipe:
        settings = {key: value for key, value in method.settings().items() if key not in method.files}
        for word in _words(settings):
            if word == "cache_dir" or any(sign in word.removeprefix("torchvision/") for sign in "/\\:"):
                raise RecipeError(
                    f"{where}: {method.name} names {word!r}. A recipe from elsewhere may name models of timm, "
                    "torchvision and tokensieve, and weights in its own folder. Read it by Recipe.load if you trust it."
                )


def _words(value: Any) -> Iterator[str]:
    """All text in a setting, names in mappings too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (*_words(key), *_words(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)
