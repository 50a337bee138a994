"""The recipe on the page on many words runs as printed, but for the base and the folders."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from pseudoword import Concept, cli

PAGE = (Path(__file__).parents[1] / "docs" / "many-words.md").read_text(encoding="utf-8")


def test_its_recipe_and_commands_run(base: Path, pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    [printed] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    recipe = tomllib.loads(printed)
    for concept in recipe["concepts"]:
        (tmp_path / concept["pictures"]).symlink_to(pictures)
    recipe["base"]["model"] = str(base)
    recipe["schedule"]["steps"] = "2"
    recipe["validation"] |= {"validation_sampling_steps": 2, "num_validation_images": 1}
    monkeypatch.chdir(tmp_path)
    Path("my-words.toml").write_text(tomli_w.dumps(recipe))
    commands = re.findall(r"^pseudoword (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert cli.main(command.split()) == 0
    named = set(re.findall(r"`words/([\w-]+)/`", PAGE))
    assert {path.name for path in Path("my-words/words").iterdir()} == named | {"ink"}
    assert Concept.load("my-words/words/my-mug").num_vectors == 4
    assert Path("my-words/words/my-cat/samples/strip.png").is_file()
