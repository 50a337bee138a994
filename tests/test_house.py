"""The house rules: who imports whom, what needs torch, what importing leaves behind, and how large things grow."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "pseudoword"
PACKAGE = "pseudoword"

LAYERS = [
    {"cli", "commands", "demo"},
    {"flags"},
    {"checking", "trials"},
    {"training", "inspection", "converting", "interruption"},
    {"job"},
    {"watch", "cohorts"},
    {"bar"},
    {"evaluate", "hub", "judging"},
    {"card", "generate", "loading", "hub_client", "run", "starting", "tracking"},
    {"toybox"},
    {"data", "engines", "formats", "sheets"},
    {"families", "methods"},
    {"checkpoints", "vocabulary", "objectives", "schedules", "disk", "layout", "ranges", "algebra", "flax_models"},
    {"concept", "recipe", "batch", "contracts", "progress", "summaries"},
    {"sections", "contents"},
    {"augmentations", "weightings"},
    {"placeholder", "recipe_paths", "settings"},
    {"encoders", "errors", "spelling"},
]
"""Rooms, from the roof down: a room imports from rooms below its own layer."""
ALLOWED = {
    ("concept", "formats"): "a concept loads and saves itself by name; imported when it does",
    ("recipe", "methods"): "a recipe is built by its method's name; imported when it is",
    ("commands", "demo"): "a command is the thin face of the module of its name",
}
NEED_TORCH = (
    "families/*/torch.py",
    "families/*/miniature.py",
    "families/*/costs.py",
    "families/counting.py",
    "families/clip_miniature.py",
    "families/latent_diffusion.py",
    "families/lending.py",
    "families/lent_tokenizer.py",
    "families/lookup.py",
    "families/memory.py",
    "families/parts.py",
    "families/samplers.py",
    "families/tokenizers.py",
    "families/weights.py",
    "engines/switches.py",
    "engines/torch_engine.py",
    "toybox/base.py",
    "toybox/muon.py",
    "toybox/names.py",
    "toybox/oracle.py",
    "toybox/trainer.py",
    "loading.py",
    "evaluate/similarity.py",
)
HEAVY = {"torch", "transformers", "diffusers", "accelerate"}


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    paths = sorted(SRC.rglob("*.py"))
    names = [".".join((PACKAGE, *p.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__") for p in paths]
    return dict(zip(names, paths, strict=True))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def walk(node: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    """Yield a module's nodes, leaving out what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        if into_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk(child, into_functions=into_functions)


def imported(name: str, *, into_functions: bool) -> set[str]:
    """Return our own modules that a module imports when it runs."""
    found: set[str] = set()
    for node in walk(tree(modules()[name]), into_functions=into_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; absolute names can be searched for"
            source = node.module or ""
            found |= {
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in modules() else source for alias in node.names
            }
    return {module for module in found if module.split(".")[0] == PACKAGE}


def room(module: str) -> str:
    """Return the folder or file at the top of the package that a module belongs to; '' for the package itself."""
    return [*module.split("."), ""][1]


def layer(name: str) -> int:
    [index] = [i for i, rooms in enumerate(LAYERS) if name in rooms]
    return index


def python(code: str, **env: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Who imports whom


def test_every_room_has_its_layer():
    rooms = {room(name) for name in modules()} - {""}
    assert rooms == set().union(*LAYERS)


def test_imports_go_downwards_only_and_never_between_siblings():
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        for target in imported(name, into_functions=True)
        if room(name) and room(target) and room(name) != room(target)
        if layer(room(target)) <= layer(room(name)) and (room(name), room(target)) not in ALLOWED
    ]
    assert wrong == []


def test_every_exception_is_still_needed():
    made = {(room(name), room(target)) for name in modules() for target in imported(name, into_functions=True)}
    assert set(ALLOWED) <= made


def test_the_noun_that_opens_a_door_upwards_opens_it_only_when_asked():
    assert "formats" not in {room(target) for target in imported("pseudoword.concept", into_functions=False)}


def test_the_package_itself_imports_nothing_of_its_own():
    assert imported(PACKAGE, into_functions=True) == set()


# What needs torch


def needs_torch() -> set[str]:
    """Return the modules that cannot be imported without torch: those that say so, and those that import them."""
    paths = {path for pattern in NEED_TORCH for path in SRC.glob(pattern)}
    needing = {name for name, path in modules().items() if path in paths}
    while more := {n for n in modules() if n not in needing and imported(n, into_functions=False) & needing}:
        needing |= more
    return needing


def test_only_the_demo_the_toybox_and_what_measures_words_build_on_torch():
    said = {name for name, path in modules().items() for pattern in NEED_TORCH if path in set(SRC.glob(pattern))}
    assert {room(name) for name in needs_torch() - said} <= {"demo", "evaluate", "toybox"}


def test_without_torch_everything_else_can_be_imported():
    names = sorted(set(modules()) - needs_torch())
    assert {"pseudoword.training", "pseudoword.families.sd.words", "pseudoword.commands.demo"} <= set(names)
    assert (
        python(f"""
        import importlib, sys
        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "diffusers", "accelerate"):
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, NoTorch())
        for name in {names!r}:
            importlib.import_module(name)
        print("all of them")
    """)
        == "all of them"
    )


@pytest.mark.parametrize("words", [None, ["--help"], ["--version"], ["train", "--help"], ["check", "--help"]])
def test_importing_the_package_and_asking_for_help_load_nothing_heavy(words: list[str] | None):
    said = python(f"""
        import sys
        import pseudoword
        words = {words!r}
        if words:
            from pseudoword.cli import main
            try:
                main(words)
            except SystemExit as end:
                assert end.code in (0, None), end.code
        print()
        print(sorted({HEAVY!r} & set(sys.modules)))
    """)
    assert said.splitlines()[-1] == "[]"
    if words and words != ["--version"]:
        assert "usage: pseudoword" in said


def test_importing_any_module_leaves_no_file_and_no_logging_handler(tmp_path: Path):
    places = {name: str(tmp_path / name) for name in ("HOME", "USERPROFILE", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME")}
    for place in places.values():
        Path(place).mkdir()
    here = tmp_path / "here"
    here.mkdir()
    python(
        f"""
        import importlib, logging, os
        os.chdir({str(here)!r})
        level = logging.getLogger().level
        for name in {sorted(modules())!r}:
            importlib.import_module(name)
        loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict
                                          if name.split(".")[0] == {PACKAGE!r})]
        assert len(loggers) > 1
        assert not any(logger.handlers for logger in loggers)
        assert logging.getLogger().level == level
        import torch
        assert not torch.cuda.is_initialized()
        """,
        **places,
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert list(here.rglob("*")) == []
    ours = [path for place in places.values() for path in Path(place).rglob("*") if path.is_file()]
    assert ours == []


# How things are written


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


ALL = ("src", "examples", "tests", "benchmarks")


def test_no_file_is_longer_than_400_lines():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in files(*ALL)}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_is_longer_than_80_lines():
    functions = [
        (f"{path.relative_to(ROOT)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for path in files(*ALL)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 100
    assert [(name, length) for name, length in functions if length > 80] == []


def test_nothing_is_left_for_later():
    words = ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"]
    texts = [p for folder in ("src", "examples") for e in ("py", "md", "txt") for p in (ROOT / folder).rglob(f"*.{e}")]
    left = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts
        if "toybox/model" not in path.as_posix() and ".egg-info" not in path.as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(word in line for word in words)
    ]
    assert left == []


def undocumented(node: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            if not ast.get_docstring(child):
                yield f"{where}.{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, f"{where}.{child.name}")


def test_every_module_and_everything_public_says_what_it_is():
    missing = [name for name, path in modules().items() if not ast.get_docstring(tree(path))]
    missing += [name for module, path in modules().items() for name in undocumented(tree(path), module)]
    assert missing == []
