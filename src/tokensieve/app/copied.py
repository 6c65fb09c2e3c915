"""What is on the page, as text to take away: Python and command lines that do the same elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..model_spec import ModelSpec
from ..recipe import Recipe

PLACEHOLDER = {False: "photo.jpg", True: "clip.mp4"}
"""What stands for the reader's own file, by whether it is a video."""


def python(spec: ModelSpec, recipe: Recipe, *, videos: bool) -> str:
    """Python that opens the same model under the same recipe. Files are named without their folders."""
    words = [_quoted(spec.model), _quoted(str(bare(recipe)))]
    if spec.weights is not None:
        words.append(f"weights={_quoted(Path(spec.weights).name)}")
    if spec.size is not None:
        words.append(f"size={spec.size}")
    if spec.precision != "fp32":
        words.append(f"precision={_quoted(spec.precision)}")
    if not spec.pretrained:
        words.append("pretrained=False")
    if videos:
        reading = 'clips = read_clips("clip.mp4", preprocessing).clips\nanswer = fast(clips)'
        imports = "from tokensieve import ModelSpec\nfrom tokensieve.data import read_clips"
    else:
        reading = 'image = preprocessing.transform()(read_image("photo.jpg"))\nanswer = fast(image[None])'
        imports = "from tokensieve import ModelSpec\nfrom tokensieve.data import read_image"
    return f"""{imports}

dense, fast, preprocessing = ModelSpec({", ".join(words)}).open()
{reading}  # as dense would, for less work
"""


def commands(spec: ModelSpec, recipe: Recipe, *, videos: bool) -> str:
    """Command lines that draw the same, and that measure its speed."""
    words = ["--model", spec.model]
    if spec.weights is not None:
        words += ["--weights", Path(spec.weights).name]
    words += [] if spec.pretrained else ["--no-pretrained"]
    model = shlex.join(words)
    text = f'--recipe "{bare(recipe)}"' if '"' not in str(recipe) else f"--recipe {shlex.quote(str(bare(recipe)))}"
    return f"tokensieve show {PLACEHOLDER[videos]} {model} {text}\ntokensieve bench {model} {text}\n"


def bare(recipe: Recipe) -> Recipe:
    """The recipe with its files by their names alone: where they lie on this machine concerns nobody else."""
    return recipe.with_paths(lambda path: Path(path).name)


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else repr(text)
