"""The page in a browser: one whole visit, bad files, many at once, and nothing asked of anybody else."""

import socket

import pytest
from PIL import Image

from tests.app.browser import ask_together, browser, missing, visitor
from tests.oddities import photo
from tokensieve import Recipe
from tokensieve.app import page as page_module
from tokensieve.app.backend import Backend
from tokensieve.app.examples import pictures
from tokensieve.app.models import bundled_entries

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
HERE = {"127.0.0.1"}


@pytest.fixture(scope="module")
def asked():
    """Addresses that this process, the server's, looks up or connects to."""
    return []


@pytest.fixture(scope="module")
def url(asked):
    whole = pytest.MonkeyPatch()
    found, connect = socket.getaddrinfo, socket.socket.connect

    def noted_lookup(host, *given, **settings):
        asked.append(host)
        return found(host, *given, **settings)

    def noted_connect(self, address):
        asked.append(address[0] if isinstance(address, tuple) else "a file")
        return connect(self, address)

    whole.setattr(socket, "getaddrinfo", noted_lookup)
    whole.setattr(socket.socket, "connect", noted_connect)
    blocks, url = page_module.launch(Backend(bundled_entries()), megabytes=1)
    yield url
    blocks.close(verbose=False)
    whole.undo()


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def visit(chromium, url):
    with visitor(chromium) as found:
        found.open(url)
        yield found
        assert found.hosts() == HERE
        assert not [
            each for each in found.complaints if "413" not in each
        ]  # the browser's own word on a file too large


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "my scene.png"
    pictures()[1].picture.save(path)
    return path


def test_a_whole_visit(visit, scene):
    assert visit.captions == ["Input", "Significance map", "Kept patches"]
    assert visit.recipe == "papr(keep=0.5, proposal=nano_convnet)"
    visit.changes(lambda: visit.drop(scene))
    assert visit.headline.startswith(("Same answer", "Another answer"))
    visit.changes(lambda: visit.move(0.3))
    assert visit.recipe == "papr(keep=0.3, proposal=nano_convnet)"
    assert visit.copied() == visit.recipe
    visit.changes(lambda: visit.choose("preset", "(tome)"))
    assert visit.captions == ["Input", "Merged patches"]
    assert [method.name for method in Recipe.parse(visit.copied())] == ["tome"]
    written = "papr(keep=0.2, significance=centre) + tome(r=2)"
    visit.changes(lambda: visit.write(written))
    assert visit.recipe == written
    assert visit.captions == ["Input", "Significance map", "Kept patches", "Merged patches"]
    visit.changes(lambda: visit.choose("model", "nano_segmenter"))
    assert "Classes, sieved" in visit.captions
    assert visit.page.inner_text("#result .what") == "my scene.png, read by nano_segmenter"
    visit.changes(lambda: visit.example(0))
    visit.page.click("#code button")
    assert visit.recipe.startswith("dtop(")
    assert f'ModelSpec("nano_segmenter", "{visit.recipe}")' in visit.page.inner_text("#code")


def test_clips(visit):
    pytest.importorskip("transformers", reason="nano_video is a model of transformers")
    visit.changes(lambda: visit.choose("model", "nano_video"))
    assert set(visit.captions) == {"Input", "Significance map", "Kept patches"}
    visit.changes(lambda: visit.example(2))
    visit.changes(lambda: visit.choose("model", "nano_convnext"))
    assert visit.captions[-1].startswith("Kept, stage")


def test_a_picture_dropped_on_a_model_of_clips_is_read_by_one_of_pictures(visit, scene):
    pytest.importorskip("transformers", reason="nano_video is a model of transformers")
    visit.changes(lambda: visit.choose("model", "nano_video"))
    visit.changes(lambda: visit.drop(scene))
    assert visit.page.input_value("#model input") == "nano_vit"


def test_bad_files_and_recipes_are_answered_in_sentences_and_the_visit_goes_on(visit, tmp_path, scene):
    (tmp_path / "notes.jpg").write_text("no picture")
    said = visit.refused(lambda: visit.drop(tmp_path / "notes.jpg", "image/jpeg"))
    assert said == "notes.jpg is not a picture that Pillow can read."
    visit.changes(lambda: visit.example(1))
    said = visit.refused(lambda: visit.write("papr(keep=0.5, proposal=resnet50)"))
    assert "resnet50, whose weights are not here" in said
    assert "Traceback" not in visit.page.content()
    visit.changes(lambda: visit.move(0.6))
    visit.changes(lambda: visit.drop(scene))


def test_a_file_that_is_too_large_is_refused(visit, tmp_path):
    photo((1200, 1200)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 2**20
    visit.drop(tmp_path / "large.png")
    visit.page.wait_for_selector("text=/size/i >> text=/1/")
    assert visit.headline


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(chromium, url, scheme):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visitor(chromium, color_scheme=scheme, **phone) as visit:
        visit.open(url)
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(", ")[:3])) > 384
        assert light is (scheme == "light")


def test_twenty_at_once_are_all_answered(url, tmp_path):
    paths = []
    for number in range(20):
        paths.append(tmp_path / f"{number}.png")
        Image.effect_noise((64, 64), 10 + number).convert("RGB").save(paths[-1])
    waited = ask_together(url, paths, [(2 + number % 10) / 20 for number in range(20)])
    assert len(waited) == 20


def test_the_server_asks_nobody_else(url, asked):
    assert set(asked) <= {"127.0.0.1", "localhost", "::1", "a file", b"127.0.0.1"}


def test_what_a_visitor_may_not_see_is_not_served(url):
    """Neither a file of the server nor anything that was not asked of the page."""
    import httpx

    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=pyproject.toml"):
        assert httpx.get(url.rstrip("/") + path).status_code in (403, 404)
    answer = httpx.get(url)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
