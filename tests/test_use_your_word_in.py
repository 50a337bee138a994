"""The page `docs/use-your-word-in.md`: its table is the tools' rules, its commands work, its paths are the tools'."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pseudoword import cli, formats
from pseudoword.formats.tools import TOOLS, Tool
from tests.formats.test_readers import corpus, word

PAGE = (Path(__file__).parents[1] / "docs" / "use-your-word-in.md").read_text(encoding="utf-8")
FILES = {
    "one tensor under the token, as diffusers writes it": "diffusers.safetensors",
    "the same, one flat vector, as in the concepts library": "flat.safetensors",
    "`emb_params`": "emb_params.safetensors",
    "`emp_params`": "emp_params.safetensors",
    "`string_to_param`, A1111's `.pt`": "a1111.pt",
    "`string_to_param`, the original's `.pt`": "original.pt",
    "`clip_l`, `clip_g`": "xl.safetensors",
    "`text_encoders_0`, `_1` (pivotal tuning)": "pivotal.safetensors",
    "`clip_l`, `clip_g`, of which one has more vectors": "uneven.safetensors",
    "several tensors under their tokens": "two-words.safetensors",
    "`clip_l`, `t5`": "flux.safetensors",
    "`clip_l`, `t5xxl`": "flux-comfyui.safetensors",
    "`clip_l`, `clip_g`, `t5xxl`": "sd3-comfyui.safetensors",
    "`clip_l`, `llama` (HunyuanVideo)": "llama.safetensors",
    "`gemma` (Sana)": "sana.safetensors",
    "a `.bin` or `.pt` of torch 2.9 or newer, A1111's kind": "a1111-of-newer-torch.pt",
    "a picture": "picture.png",
    "a LoRA with a word": "lora.safetensors",
}
"""By what the page calls them: files of the corpus."""
COLUMNS = ["diffusers", "a1111", "comfyui", "invokeai", "kohya", "onetrainer", "original"]


def table(files: dict[str, Path]) -> list[str]:
    """Return the lines that the page should have."""
    lines = []
    for called, name in FILES.items():
        contents = formats.open_file(files[name])
        cells = ["yes" if TOOLS[tool].verdict(contents, name).loads else "no" for tool in COLUMNS]
        if name == "lora.safetensors":
            cells[1] = "A1111, with the LoRA"
        lines.append(f"| {called} | {' | '.join(cells)} |")
    return lines


def test_the_table_is_what_the_rules_say(tmp_path: Path, lora: Path):
    files = {path.name: path for path in corpus(tmp_path, lora)}
    rows = [line for line in PAGE.partition("## Who reads what")[2].splitlines() if line.startswith("| ")][1:]
    assert rows == table(files)


def test_the_names_on_the_page_are_those_that_words_get():
    rows = PAGE.partition("## What a file is called")[2].partition("You may call")[0].splitlines()
    cells = [re.findall(r"`([^`]+)`", line.rpartition("|")[0].rpartition("|")[0]) for line in rows if "| `" in line]
    assert len(cells) == 4
    for names in cells:
        half = len(names) // 2
        assert [formats.safe_stem(token) for token in names[:half]] == names[half:]


@pytest.mark.parametrize("tool", TOOLS.values(), ids=list(TOOLS))
def test_the_page_names_each_tools_place_and_commit(tool: Tool):
    place = tool.place.partition(":")[0].removesuffix(" FILE").partition(" --")[0]
    assert place.split(",")[0] in PAGE or place in ("anywhere", "the Model Manager")
    commit = re.search(r"@(\w+)", tool.source)
    assert commit
    assert commit[1] in PAGE


def test_the_commands_work_as_printed(
    tmp_path: Path, lora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base: Path
):
    monkeypatch.chdir(tmp_path)
    assert lora == tmp_path / "style-lora.safetensors"
    word("sd1", token="<my-cat>").save(tmp_path / "my-cat-run")
    for name in ("my-cat", "your-cat", "comic", "king", "man", "woman"):
        word("sd1", token=f"<{name}>").save(tmp_path / "words" / f"{name}.safetensors")
        word("sd1", token=f"<{name}>").save(tmp_path / f"{name}.safetensors")
    formats.write_file(word("sd1"), tmp_path / "downloaded.pt", "webui")
    commands = re.findall(r"^(pseudoword .+?)(?:   +#.*)?$", PAGE, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        arguments = shlex.split(command)[1:]
        if (
            "--model" in arguments and "scale" in arguments
        ):  # a base at the real size is not at hand: one of the miniature's width is
            small = word("sd1").rows["clip_l"][:, :32]
            formats.Concept("<my-cat>", {"clip_l": small}).save(tmp_path / "my-cat.safetensors")
            arguments[arguments.index("--model") + 1] = str(base)
        assert cli.main(arguments) == 0, f"{command}: {capsys.readouterr().err}"
        capsys.readouterr()
    assert formats.read("our-cat.safetensors").token == "<our-cat>"
    assert (tmp_path / "my-cat-files" / "comfyui" / "my-cat.safetensors").is_file()
