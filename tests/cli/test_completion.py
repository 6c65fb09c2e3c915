"""The tab key: commands, options and values, without anything heavy."""

import os
import subprocess
import sys

import pytest

from tokensieve import zoo
from tokensieve.about.models import SEGMENTERS
from tokensieve.cli.completion import METHODS, MODELS, one_of
from tokensieve.methods import METHODS as REGISTERED
from tokensieve.zoo.nano import BUILDERS


def complete(*words: str) -> list[str]:
    """What bash is offered for the last word; sees that neither torch nor rich is loaded for it."""
    code = (
        "import atexit, sys; from tokensieve.cli import main; "
        "atexit.register(lambda: print([m for m in ('torch', 'timm', 'rich') if m in sys.modules], file=sys.stderr)); "
        "sys.exit(main())"
    )
    environment = os.environ | {
        "_TOKENSIEVE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["tokensieve", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n"), done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ev"], {"eval"}),
        (["bench", "--mem"], {"--memory"}),
        (["methods", "dynamic"], {"dynamiccnn", "dynamicswin", "dynamicvit"}),
        (["bench", "--model", "nano_v"], {"nano_vit", "nano_video", "nano_video_proposal"}),
        (["bench", "--dtype", "b"], {"bf16"}),
    ],
)
def test_the_tab_key(words, offered) -> None:
    assert set(complete(*words)) == offered


def test_what_is_written_down_is_what_there_is() -> None:
    own = [name for name, method in REGISTERED.items() if method.__module__.startswith("tokensieve.")]
    assert list(METHODS) == sorted(own)  # other tests register methods of their own
    assert {*BUILDERS, *SEGMENTERS, *zoo.VIDEO_MODELS} == set(MODELS)


def test_one_of() -> None:
    assert one_of(["ab", "ac", "b"])("a") == ["ab", "ac"]


def test_the_script_for_a_shell_is_shown() -> None:
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "tokensieve", "--show-completion", "bash"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_TOKENSIEVE_COMPLETE=complete_bash" in done.stdout
