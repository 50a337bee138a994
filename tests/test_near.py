"""What a person may have meant."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from pseudoword import cli
from pseudoword.errors import RecipeError
from pseudoword.families.locate import locate
from pseudoword.near import did_you_mean
from pseudoword.recipe import BaseModel


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("toybx", " Did you mean 'toybox'?"),
        ("TOYBOX", " Did you mean 'toybox'?"),
        ("Goldfsh", " Did you mean 'Goldfish'?"),
        ("gpt2", ""),
        ("", ""),
    ],
)
def test_a_slip_of_the_finger_is_recognised_and_nothing_else(name: str, answer: str) -> None:
    assert did_you_mean(name, ["toybox", "Goldfish"]) == answer


def test_a_model_that_is_nearly_here_is_told_without_asking_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*args: object, **options: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models" / "my-model"
    models.mkdir(parents=True)
    (models / "model_index.json").write_text("{}")
    for name, near in (("toybx", "toybox"), ("models/my-modle", "models/my-model")):
        with pytest.raises(RecipeError, match=f"There is no model '{name}' here. Did you mean '{near}'"):
            locate(BaseModel(name), {"toybox": tmp_path})
    with pytest.raises(AssertionError, match="a network was asked"):
        locate(BaseModel("owner/my-modle"), {"toybox": tmp_path})


def test_the_toyboxs_concepts_are_told_when_one_is_misspelt(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["toybox", "render", "--concept", "goldfsh", "--output", str(tmp_path / "x")]) == 1
    assert "Did you mean 'goldfish'?" in capsys.readouterr().err
