"""`tokensieve app`: what it refuses, and that it serves."""

import re
import sys

import pytest


@pytest.mark.parametrize("option", ["--weights", "--recipe", "--proposal-weights", "--classes"])
def test_what_is_of_a_model_wants_one(run, option):
    result = run("app", option, "tome(r=2)")
    assert result.code == 2
    assert "give --model too" in result.err


def test_without_gradio_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = run("app")
    assert (result.code, result.out) == (2, "")
    assert "pip install 'tokensieve[app]'" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_model_that_cannot_be_opened_is_said_before_anything_is_served(run):
    pytest.importorskip("gradio", reason="the page's library, of the extra app, is not installed")
    result = run("app", "--model", "no_such_model")
    assert result.code == 2
    assert "no_such_model" in result.err


@pytest.mark.slow
def test_it_serves_and_answers(run):
    pytest.importorskip("gradio", reason="the page's library, of the extra app, is not installed")
    result = run("app", "--no-browser", "--check", "--model", "test_vit", "--no-pretrained", "--recipe", "tome(r=2)")
    assert result.code == 0, result.err
    assert re.search(r"the page at http://127\.0\.0\.1:\d+/ ran an example in \d+\.\d\d s\.", result.err)
