"""Python code and command lines that reproduce a result of the page."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..model_spec import ModelSpec
from ..recipe import Recipe

PLACEHOLDER = {False: "photo.jpg", True: "clip.mp4"}
"""File name in the code, by whether it is a video."""


def python(spec: ModelSpec, recipe: Recipe, *, videos: bool) -> str:
    """Python that opens the same model under the same recipe. Files are named without their folders."""
    arguments = [_quoted(spec.model), _quoted(str(without_folders(recipe)))]
    if spec.weights is not None:
        arguments.append(f"weights={_quoted(Path(spec.weights).name)}")
    if spec.size is not None:
        arguments.append(f"size={spec.size}")
    if spec.precision != "fp32":
        arguments.append(f"precision={_quoted(spec.precision)}")
    if not spec.pretrained:
        arguments.append("pretrained=False")
    if videos:
        read = 'clips = read_clips("clip.mp4", preprocessing).clips\nanswer = fast(clips)'
        imports = "from tokensieve import ModelSpec\nfrom tokensieve.data import read_clips"
    else:
        read = 'image = preprocessing.transform()(read_image("photo.jpg"))\nanswer = fast(image[None])'
        imports = "from tokensieve import ModelSpec\nfrom tokensieve.data import read_image"
    return f"""{imports}

dense, fast, preprocessing = ModelSpec({", ".join(arguments)}).open()
{read}  # as dense would, for less work
"""


def commands(spec: ModelSpec, recipe: Recipe, *, videos: bool) -> str:
    """Command lines that draw the same, and that measure its speed."""
    options = ["--model", spec.model]
    if spec.weights is not None:
        options += ["--weights", Path(spec.weights).name]
    options += [] if spec.pretrained else ["--no-pretrained"]
    model = shlex.join(options)
    text = str(without_folders(recipe))
    text = f"--recipe {shlex.quote(text)}" if '"' in text else f'--recipe "{text}"'
    return f"tokensieve show {PLACEHOLDER[videos]} {model} {text}\ntokensieve bench {model} {text}\n"


def without_folders(recipe: Recipe) -> Recipe:
    """The recipe with its files named without their folders, which are private."""
    return recipe.with_paths(lambda path: Path(path).name)


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else repr(text)
