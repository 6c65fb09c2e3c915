"""Model cards: the figures are eval's, nothing of the machine's folders is published, another recipe's are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.hub.conftest import StandIn
from tokensieve import CascadeRecipe, InputError
from tokensieve.hub import HubRecipe

pytestmark = pytest.mark.versions

RECIPE = "papr(keep=0.4, proposal=nano_convnet)"


@pytest.fixture
def record(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `tokensieve eval --json` prints, of scenes, which have labels."""
    monkeypatch.chdir(tmp_path)
    words = ("--model", "nano_vit", "--recipe", RECIPE, "--data", "scenes", "--limit", 12, "--threads", 1, "--json")
    result = run("eval", *words)
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_the_card_says_what_eval_measured(record: dict[str, Any], hub: StandIn) -> None:
    published = HubRecipe(RECIPE, evaluation=record, license="apache-2.0", base_model="you/nano", notes="For digits.")
    published.push_to_hub("you/nano-sieved")
    card = ModelCard.load(hub.commit("you/nano-sieved") / "README.md")
    assert card.data.library_name == "tokensieve"
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "you/nano"
    assert card.data.pipeline_tag == "image-classification"
    assert {"papr", "tokensieve"} <= set(card.data.tags)
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {
        "top1": round(record["sieved"]["top1"], 4),
        "top5": round(record["sieved"]["top5"], 4),
        "agreement with the dense model": round(record["agreement"], 4),
    }
    text = card.text
    (row,) = [line for line in text.splitlines() if line.startswith("| top-1 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith(f"{record['dense']['top1']:.1f}% [{record['dense_low']['top1']:.1f}-")
    assert cells[2].startswith(f"{record['sieved']['top1']:.1f}% [")
    assert cells[3] == f"{record['change']['top1']:+.1f}".replace("-", "−")
    (row,) = [line for line in text.splitlines() if line.startswith("| GMACs an image |")]
    assert float(row.split("|")[3]) == pytest.approx(record["macs"]["sieved"] / 1e9, rel=0.05)
    assert row.endswith(f"| {record['macs']['ratio']:.2f}x fewer |")
    assert "on 12 of `scenes`" in text
    assert 'HubRecipe.from_pretrained("you/nano-sieved")' in text
    assert 'ModelSpec("nano_vit", recipe).open()' in text
    assert "For digits." in text
    assert RECIPE in text


def test_the_cards_code_opens_the_recipe(record: dict[str, Any], hub: StandIn) -> None:
    HubRecipe(RECIPE, evaluation=record).push_to_hub("you/nano-sieved")
    text = (hub.commit("you/nano-sieved") / "README.md").read_text()
    names: dict[str, Any] = {}
    code = text.split("```python\n")[1].split("```")[0].replace("sieve(model,", "sieve(dense,")
    exec(code, names)
    assert str(names["fast"].recipe).startswith("papr(keep=0.4")


def test_the_figures_come_back_and_go_on(record: dict[str, Any], hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(record))
    HubRecipe(RECIPE, evaluation=tmp_path / "eval.json").push_to_hub("you/nano-sieved")
    found = HubRecipe.from_pretrained("you/nano-sieved")
    assert found.model == "nano_vit"
    assert found.evaluation is not None
    assert found.evaluation["sieved"] == record["sieved"]
    found.push_to_hub("other/nano-sieved")
    first, second = ((hub.commit(f"{who}/nano-sieved") / "README.md").read_text() for who in ("you", "other"))
    assert second == first.replace("you/nano-sieved", "other/nano-sieved")


def test_no_folder_of_this_machine_is_published(record: dict[str, Any], tmp_path: Path) -> None:
    secret = "/home/me/secret"
    told = {**record, "data": f"{secret}/photographs/", "weights": f"{secret}/w.bin", "command": f"eval {secret}"}
    told |= {"failures": [{"path": f"{secret}/1.jpg", "reason": "x"}], "predictions": f"{secret}/p.csv"}
    told["preprocessing"] = {"name": secret}
    told["recipe_json"] = json.loads(json.dumps(told["recipe_json"]))
    told["recipe_json"]["methods"][0]["proposal_weights"] = f"{secret}/p.safetensors"
    HubRecipe(RECIPE, evaluation=told).save_pretrained(tmp_path / "folder")
    texts = [path.read_text() for path in (tmp_path / "folder").iterdir()]
    assert not [text for text in texts if "secret" in text]
    assert any("of `photographs`" in text for text in texts)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"recipe_json": {"tokensieve": 2, "methods": [{"name": "tome", "r": 8}]}}, r"of the recipe tome\(r=8\), but"),
        ({"machine": ...}, "this one has no 'machine'"),
        ({"model": "other_vit"}, "is of the model other_vit, but model='nano_vit'"),
    ],
)
def test_another_ones_figures_are_refused(record: dict[str, Any], change: dict[str, Any], told: str) -> None:
    wrong = {key: value for key, value in {**record, **change}.items() if value is not ...}
    with pytest.raises(InputError, match=told):
        HubRecipe(RECIPE, evaluation=wrong, model="nano_vit")


def test_an_evaluation_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        HubRecipe(RECIPE, evaluation=tmp_path / "none.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(InputError, match="cannot be read"):
        HubRecipe(RECIPE, evaluation=tmp_path / "text.json")


def test_a_card_is_written_anew_and_a_readme_of_ones_own_stays(record: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    HubRecipe(RECIPE, evaluation=record).save_pretrained(folder)
    HubRecipe("tome(r=8)").save_pretrained(folder)
    card = (folder / "README.md").read_text()
    assert "tome(r=8)" in card
    assert "Not measured" in card
    assert not (folder / "evaluation.json").exists()
    (folder / "README.md").write_text("# Mine\n")
    HubRecipe(RECIPE).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_maps_are_told_in_their_own_figures(record: dict[str, Any], tmp_path: Path) -> None:
    depth = {"abs_rel": 0.0512, "rmse": 0.4, "delta1": 97.2}
    told = {**record, "kind": "depth", "dense": depth, "sieved": {**depth, "abs_rel": 0.06}}
    told["change"] = {"abs_rel": 0.0088, "rmse": 0.0, "delta1": 0.0}
    told |= {f"{name}_{end}": {} for name in ("dense", "sieved", "change") for end in ("low", "high")}
    told |= {"divergence": 0.01, "divergence_low": None, "divergence_high": None}
    HubRecipe(RECIPE, evaluation=told).save_pretrained(tmp_path / "folder")
    card = ModelCard.load(tmp_path / "folder" / "README.md")
    assert "| abs_rel | 0.0512 | 0.06 | +0.0088 |" in card.text
    assert "| delta1 | 97.2% | 97.2% | +0.0 |" in card.text
    assert card.data.pipeline_tag == "depth-estimation"


def test_the_card_of_a_cascade_says_how_many_images_each_recipe_reads(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: StandIn
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = CascadeRecipe((RECIPE, ""), (0.5,))
    recipe.save("cascade.json")
    words = ("--model", "nano_vit", "--recipe", "cascade.json", "--data", "scenes", "--limit", 12, "--threads", 1)
    result = run("eval", *words, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    HubRecipe(recipe, evaluation=record).push_to_hub("you/nano-cascade")
    text = (hub.commit("you/nano-cascade") / "README.md").read_text().replace("\xa0", " ")
    again = record["cascade"]["members"][1]["share"]
    assert f"| images read by {RECIPE} |  | 100 % |  |" in text
    assert f"| images read by the dense model |  | {100 * again:.1f} % |  |" in text
    assert HubRecipe.from_pretrained("you/nano-cascade").evaluation["cascade"] == record["cascade"]
    with pytest.raises(InputError, match="The evaluation is of the recipe cascade"):
        HubRecipe(CascadeRecipe((RECIPE, ""), (0.4,)), evaluation=record)
