"""`pseudoword evaluate`, from runs and files to a report, on the toybox and on small random models."""

from __future__ import annotations

import html
import json
import logging
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pseudoword import cli, formats, generate
from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.evaluate import answer_key, diagnostics, similarity
from pseudoword.evaluate.prompts import Question
from pseudoword.evaluate.words import Asked, names, words_of
from pseudoword.recipe import BaseModel, Output
from pseudoword.toybox import oracle, suite
from pseudoword.training import train
from tests.evaluate.test_similarity import models  # noqa: F401  # a fixture

KNOWN = ["--model", "toybox", "--class-word", "ring"]
FEW = ["--num-images", "2", "--num-inference-steps", "3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short runs of one recipe, which differ by their seed."""
    root = tmp_path_factory.mktemp("runs")
    subject = suite.NAMED["gold-ring"]
    for seed in (0, 1):
        folder = root / f"ring-{seed}"
        recipe = suite.recipe(subject, folder, "<ring>", steps=4, seed=seed)
        recipe = replace(recipe, output=Output(folder=str(folder), save_steps=2))
        list(train(recipe))
    return [root / "ring-0", root / "ring-1"]


@pytest.fixture(scope="module")
def files(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The words of these runs as files alone, away from what the runs know."""
    root = tmp_path_factory.mktemp("files")
    alone = [root / run.name / "learned_embeds.safetensors" for run in runs]
    for run, file in zip(runs, alone, strict=True):
        file.parent.mkdir()
        shutil.copy(run / file.name, file)
    return alone


@pytest.fixture(scope="module")
def family() -> Family:
    return generate.load(BaseModel("toybox"))


def evaluate(*words: str | Path) -> int:
    logging.getLogger("pseudoword").handlers = []
    return cli.main(["evaluate", *map(str, words)])


def test_runs_are_measured_by_the_answer_key_and_again_alike(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "report"
    assert evaluate(*runs, "--output", out, *FEW) == 0
    said = capsys.readouterr().out
    assert "ring-0" in said
    assert str(out / "report.html") in said
    told = json.loads((out / "report.json").read_text())
    assert [word["seed"] for word in told["words"]] == [0, 1]
    for word in told["words"]:
        assert set(word["scores"]) == {"fidelity", "editability", "similarity"}
        assert np.shape(word["scores"]["fidelity"]) == (5, 2)
        assert word["scores"]["editability"][0] == [None, None]
        assert word["means"]["fidelity"] == pytest.approx(np.mean(word["scores"]["fidelity"]))
        assert word["training_seconds"] > 0
        assert "training.seed" not in word["recipe"]
    [group] = told["groups"]
    assert group["words"] == ["ring-0", "ring-1"]
    assert group["spreads"]["fidelity"]["seeds"] == 2
    for name in ("contact-sheet.png", "plane.png"):
        assert Image.open(out / name).width > 200
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert page.count("data:image/webp;base64,") == 2 * (5 + 5 * 2)
    assert "Over training seeds" in page
    assert "too few seeds" in page
    assert "± nan" not in page
    assert told["verdict"] in html.unescape(page)
    assert told["verdict"].split()[0] in said
    for word in told["words"]:
        assert word["references"]["untrained"]["text"] == "thing"
        assert word["references"]["in the base's own words"]["text"] == "yellow ring"
        assert np.shape(word["references"]["untrained"]["scores"]["fidelity"]) == (5, 2)
    assert "How close is what the pictures show to what yours show?" in page, "similarity is explained"

    before = (out / "report.json").read_text()
    again = tmp_path / "again"
    assert evaluate(*runs, "--output", again, *FEW) == 0
    assert json.loads((again / "report.json").read_text())["words"] == told["words"]

    # What was sampled is not sampled again, nor is a half-written picture believed.
    pictures = sorted((out / "examined").glob("*.png"))
    pictures[0].write_bytes(pictures[0].read_bytes()[:500])
    stamps = [picture.stat().st_mtime_ns for picture in pictures]
    assert evaluate(*runs, "--output", out, *FEW) == 0
    moved = [picture.stat().st_mtime_ns != stamp for picture, stamp in zip(pictures, stamps, strict=True)]
    assert moved == [True, *[False] * 3], "two words and two references"
    assert json.loads((out / "report.json").read_text())["words"] == json.loads(before)["words"]


LOOK_AT_PICTURES = """<script>addEventListener("load", async () => {
  for (const image of document.images) {
    image.loading = "eager";
    if (!image.complete) await new Promise(done => { image.onload = image.onerror = done; });
    if (!image.naturalWidth) console.error(`broken: ${image.alt}`);
  }
  document.body.append(`pictures: ${document.images.length}`);
});</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", '<img src="data:image/webp;base64,UklG"><script>absent()</script>'])
def test_the_report_opens_without_errors_in_a_browser(fault: str, runs: list[Path], tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    assert evaluate(*runs, "--output", tmp_path, *FEW) == 0
    page = tmp_path / "looked-at.html"
    page.write_text((tmp_path / "report.html").read_text() + LOOK_AT_PICTURES + fault)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = [line for line in found.stderr.splitlines() if ":CONSOLE" in line]
    assert len(complaints) == (2 if fault else 0), complaints
    assert f"pictures: {2 * (5 + 5 * 2) + (1 if fault else 0)}" in found.stdout
    assert found.stdout.count("<svg") == 2  # the plane, and the curves of the fixed-draw loss


def test_steps_of_a_run_are_points_of_one_line(runs: list[Path], tmp_path: Path):
    assert evaluate(runs[0], "--steps", "--output", tmp_path / "all", *FEW) == 0
    told = json.loads((tmp_path / "all" / "report.json").read_text())
    assert [(word["name"], word["step"]) for word in told["words"]] == [("ring-0 at 2", 2), ("ring-0 at 4", 4)]
    assert len(told["groups"]) == 2
    assert [word.step for word in words_of(str(runs[0]), Asked(), (4,))] == [4]


def test_measures_that_cannot_be_had_do_not_stop_those_that_can(
    models: Path,  # noqa: F811
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    kinds = {name: replace(kind, default=f"nobody/{name}") for name, kind in similarity.KINDS.items()}
    monkeypatch.setattr(similarity, "KINDS", kinds)
    monkeypatch.setattr(similarity.AutoConfig, "from_pretrained", _offline(similarity.AutoConfig.from_pretrained))
    words = [*runs[:1], "--prompts", "object", "--output", tmp_path / "out"]
    assert evaluate(*words, "--measure", "clip", "dino", "--dino", models / "dino", *FEW) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "are left out" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("The measures of clip are left out. Cannot load 'nobody/clip'")
    [word] = json.loads((tmp_path / "out" / "report.json").read_text())["words"]
    assert set(word["scores"]) == {"dino"}
    assert evaluate(*words, "--measure", "clip", "siglip", *FEW) == 1
    assert "None of the pretrained models to measure with can be had: clip, siglip." in capsys.readouterr().err
    assert evaluate(*words, "--measure", "clip", "dino", "--dino", tmp_path / "nowhere", *FEW) == 1  # named wrongly


def _offline(load: Any) -> Any:
    """Return a loader of configurations that finds folders alone."""

    def found(source: str) -> Any:
        if source.startswith("nobody/"):
            raise OSError("We couldn't connect to the Hub.")
        return load(source)

    return found


def test_a_file_is_measured_with_pretrained_models(
    models: Path,  # noqa: F811
    runs: list[Path],
    files: list[Path],
    tmp_path: Path,
):
    words = [files[0], "--model", "toybox", "--class-word", "ring"]
    words += ["--pictures", runs[0] / "pictures", "--prompts", tmp_path / "prompts.txt", "--output", tmp_path / "out"]
    (tmp_path / "prompts.txt").write_text("a {}\n\na {} in the snow\n")
    pretrained = [word for name in ("clip", "dino") for word in (f"--{name}", models / name)]
    assert evaluate(*words, "--measure", "clip", "dino", *pretrained, *FEW) == 0
    [word] = json.loads((tmp_path / "out" / "report.json").read_text())["words"]
    assert set(word["scores"]) == {"clip-i", "clip-t", "dino"}
    assert (word["fidelity"], word["editability"]) == ("dino", "clip-t")
    assert word["prompts"] == ["a {}", "a {} in the snow"]
    assert any("replaced by 'ring'" in line for line in word["how"])
    assert word["training_seconds"] is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "does not say which base it is for; name it with --model."),
        (["--model", "toybox"], "does not say what it was learned from; name the folder with --pictures."),
        (["--model", "toybox", "--pictures", "."], "say it with --class-word, such as 'cat'."),
        (["--steps"], "--steps goes with the folders of runs, but"),
        (["--guidance-scale", "nan"], "--guidance-scale must be a number, not nan."),
        (
            ["--output", "/dev/null/out", "--model", "toybox", "--pictures", ".", "--class-word", "ring"],
            "Cannot write to",
        ),
        (["--num-images", "0"], "--num-images must be at least 1, but is 0."),
        (["--seed", "-1"], "--seed must be between 0 and 2^63 - 1, not -1."),
        (["--output", __file__], f"--output must be a folder, but {__file__!r} is a file; name another."),
    ],
)
def test_what_is_left_open_is_asked_for(
    options: list[str], told: str, files: list[Path], capsys: pytest.CaptureFixture[str]
):
    assert evaluate(files[0], *options) == 1
    assert told in capsys.readouterr().err


def test_a_run_without_words_at_steps_is_named(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    assert evaluate(runs[0], "--steps", "3", "2") == 1
    assert "has left no word or checkpoint at step 3; those it has kept: 2, 4." in capsys.readouterr().err
    assert evaluate("nowhere") == 1
    assert "There is no file or folder 'nowhere' to evaluate; name a run's" in capsys.readouterr().err
    assert evaluate() == 1
    assert "Name at least one run's folder or embedding file to evaluate." in capsys.readouterr().err


# What the answer key and the diagnostics say


def test_subjects_are_recognised_by_their_pictures():
    for subject in (suite.NAMED["goldfish"], suite.NAMED["comic"]):
        assert suite.recognised(suite.pictures(subject)[::-1]) == subject
    assert suite.recognised(suite.pictures(suite.NAMED["fir"])[:4]) is None


def test_the_answer_key_counts_attributes(monkeypatch: pytest.MonkeyPatch):
    subject = suite.NAMED["ladybird"]
    key = answer_key.AnswerKey(subject, oracle.load())
    seen = [
        {name: (value, 1.0) for name, value in oracle.truth(prompt.expected).items()}
        for prompt in suite.prompts(subject)
        for _ in range(2)
    ]
    unsaid = {name: (values[-1], 0.5) for name, values in oracle.ATTRIBUTES.items()}
    seen[1]["shape"] = ("star", 1.0)  # one of four of its own, on a plain picture
    seen[3]["size"] = ("large", 1.0)  # not asked for
    seen[2]["background"] = ("sea", 1.0)  # one of two asked for: a photo, in the snow
    monkeypatch.setattr(oracle.Judge, "read", lambda self, pictures: [unsaid | one for one in seen])
    blank = [[Image.new("RGB", (64, 64))] * 2] * 5
    found = key.measure(key.questions, blank)
    np.testing.assert_allclose(found["fidelity"], [[1, 0.75], [1, 1], [1, 1], [1, 1], [1, 1]])
    assert np.isnan(found["editability"][0]).all()
    np.testing.assert_allclose(found["editability"][1], [0.5, 1])
    np.testing.assert_allclose(found["editability"][2:], 1)


def test_a_subjects_own_pictures_are_most_similar_to_it():
    judge = oracle.load()
    fish = answer_key.AnswerKey(suite.NAMED["goldfish"], judge)
    own, other = ([[p] for p in suite.pictures(suite.NAMED[name])] for name in ("goldfish", "badge"))
    near, far = (fish.measure(fish.questions, lines)["similarity"] for lines in (own, other))
    assert near.min() > far.max()


def test_a_word_that_is_its_class_word_drifts_nowhere(family: Family):
    [(encoder, vocabulary)] = family.vocabularies.items()
    rows, _ = vocabulary.initial_rows("star", 1)
    prompts = [Question(text) for text in ("a photo of a {} in the snow", "{}", "a red {} with {x}")]
    same = diagnostics.diagnose(family, Concept("<s>", {encoder: rows}), "star", "star", prompts)
    assert same.drift == pytest.approx(0, abs=1e-6)
    [row] = same.rows[encoder]
    assert row.cosine_to_initializer == pytest.approx(1)
    assert row.nearest[0] == ("star", pytest.approx(1))
    assert row.norm_ratio == pytest.approx(row.norm / np.linalg.norm(vocabulary.table, axis=1).mean())
    longer = Concept("<s>", {encoder: np.concatenate([rows, 5 * rows[:, ::-1]])})
    moved = diagnostics.diagnose(family, longer, "star", "star", prompts)
    assert 0.001 < moved.drift < 2
    unknown = diagnostics.diagnose(family, longer, None, "star", prompts)
    assert unknown.drift == moved.drift
    assert unknown.rows[encoder][0].cosine_to_initializer is None


def test_drift_compares_each_token_with_itself(family: Family):
    """A word of two rows, 'red' and 'star', is the class phrase 'red star' itself."""
    [(encoder, vocabulary)] = family.vocabularies.items()
    both, _ = vocabulary.initial_rows("red star", 2)
    word = Concept("<s>", {encoder: both})
    assert diagnostics.drift(family, word, "red star", [Question("a photo of a {} in the snow")]) == pytest.approx(
        0, abs=1e-6
    )
    one = Concept("<s>", {encoder: both[1:]})
    assert 0 < diagnostics.drift(family, one, "red star", [Question("a photo of a {} in the snow")]) < 0.5


def test_a_words_format_does_not_matter(runs: list[Path], tmp_path: Path):
    concept = Concept.load(runs[0])
    formats.write(concept, tmp_path / "word.bin")
    [word] = words_of(str(tmp_path / "word.bin"), Asked(BaseModel("toybox"), runs[0] / "pictures", "ring"), None)
    assert word.concept.token == "<ring>"
    assert word.seed is None


def test_words_of_one_file_name_stand_alone_and_apart(runs: list[Path], files: list[Path], tmp_path: Path):
    asked = ["--model", "toybox", "--pictures", runs[0] / "pictures", "--class-word", "ring", *FEW]
    assert evaluate(*files, files[0], *asked, "--output", tmp_path / "out") == 0
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    both = ["ring-0/learned_embeds.safetensors", "ring-1/learned_embeds.safetensors"]
    assert [word["name"] for word in told["words"]] == both
    assert [group["words"] for group in told["groups"]] == [[name] for name in both]


def test_names_tell_places_and_steps_apart(runs: list[Path]):
    found = [word for run in runs for word in words_of(str(run), Asked(), ())]
    assert names(found) == ["ring-0 at 2", "ring-0 at 4", "ring-1 at 2", "ring-1 at 4"]
    assert names(found[1:3]) == ["ring-0", "ring-1"]


def test_other_pictures_to_compare_with_change_scores_not_recipes(models: Path, runs: list[Path], tmp_path: Path):  # noqa: F811
    other = suite.write(suite.NAMED["badge"], tmp_path / "badge")
    words = [*runs[:1], "--measure", "dino", "--dino", models / "dino", "--prompts", "object", *FEW]
    words.append("--no-references")
    told = []
    for pictures in ([], ["--pictures", other]):
        assert evaluate(*words, *pictures, "--output", tmp_path / "out") == 0
        told.append(json.loads((tmp_path / "out" / "report.json").read_text())["words"][0])
    assert told[0]["scores"] != told[1]["scores"]
    assert told[0]["recipe"] == told[1]["recipe"]
    assert len(list((tmp_path / "out" / "examined").glob("*.png"))) == 1
