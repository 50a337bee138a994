"""The recipe: there and back as TOML, and every refusal with its sentence."""

from __future__ import annotations

import dataclasses
import string
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from pseudoword.errors import RecipeError, TokenError
from pseudoword.methods import OPTIONS
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import (
    BaseModel,
    ConceptRecipe,
    Data,
    EngineRecipe,
    Output,
    Recipe,
    Schedule,
    Training,
    parse_steps,
)
from tests.miniatures import MakeRecipe

LEAST: dict[str, Any] = {
    "concepts": [{"token": "<t>", "pictures": "cat", "initializer": "toy"}],
    "base": {"model": "toybox"},
}


def from_dict(values: dict[str, Any]) -> Recipe:
    return Recipe.from_dict(values)


def test_the_least_recipe_has_the_defaults():
    recipe = from_dict(LEAST)
    assert recipe == Recipe(
        concepts=(ConceptRecipe("<t>", "cat", "toy"),), base=BaseModel("toybox"), method=ClassicOptions()
    )
    assert from_dict({**LEAST, "method": {"name": "classic"}}) == recipe


def test_the_plain_values_leave_out_what_is_not_set():
    values = from_dict(LEAST).to_dict()
    assert values["method"]["name"] == "classic"
    assert values["concepts"] == [
        {"token": "<t>", "pictures": "cat", "initializer": "toy", "property": "object", "num_vectors": 1}
    ]
    assert "seed" not in values["training"]
    assert values["base"] == {"model": "toybox"}


def test_a_file_is_read_and_its_whole_numbers_are_taken_where_floats_are_meant(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[[concepts]]\ntoken = "<t>"\npictures = "cat"\ninitializer = "toy"\n[base]\nmodel = "toybox"\n'
        "[schedule]\nsteps = 300\nlearning_rate = 1\n[method]\nadam_weight_decay = 0\n"
    )
    recipe = Recipe.read(path)
    assert recipe.schedule == Schedule(steps="300", learning_rate=1.0)
    assert type(recipe.schedule.learning_rate) is float


# There and back

METHODS = ", ".join(sorted(OPTIONS))
words = st.text(string.ascii_letters + "<>-_é日'\"\\", min_size=1, max_size=8)
floats = st.floats(1e-6, 1, allow_nan=False)
counts = st.integers(1, 10**6)


def methods_options(name: str) -> Any:
    """Options of a method, of which those that are numbers of fractions differ from their defaults."""
    fields = typing.get_type_hints(OPTIONS[name])
    return st.builds(
        OPTIONS[name], **{field: floats.map(lambda x: x / 2) for field, kind in fields.items() if kind is float}
    )


@st.composite
def recipes(draw: Any) -> Recipe:
    name = draw(st.sampled_from(["linear", "cosine", "polynomial", "piecewise_constant"]))
    rules = draw(st.sampled_from(["1:10,0.5", "2:3,1e-1:5,.3"])) if name == "piecewise_constant" else None
    length = draw(counts.map(str) | counts.map("{} epochs".format) | counts.map("{} steps".format))
    return Recipe(
        concepts=(
            draw(
                st.builds(ConceptRecipe, words, words, words, st.sampled_from(["object", "style"]), st.integers(1, 99))
            ),
        ),
        base=draw(st.builds(BaseModel, words, revision=st.none() | words, clip_skip=st.none() | st.integers(0, 9))),
        method=draw(st.sampled_from(sorted(OPTIONS)).flatmap(methods_options)),
        data=draw(
            st.builds(
                Data,
                st.none() | st.integers(8, 2048),
                flip_p=floats,
                repeats=counts,
                augment=st.none() | st.just(("crop-jitter=0.2", "colour-jitter")),
            )
        ),
        training=draw(
            st.builds(
                Training,
                st.none() | st.integers(0, 2**63 - 1),
                gradient_clip=st.none() | floats,
                loss_weighting=st.none() | st.sampled_from(["debiased", "min-snr=2"]),
            )
        ),
        schedule=Schedule(length, draw(floats), draw(st.booleans()), name, lr_step_rules=rules),
        engine=draw(st.builds(EngineRecipe, mixed_precision=st.sampled_from(["no", "fp16", "bf16"]))),
        output=draw(st.builds(Output, words, checkpoints_total_limit=st.none() | counts)),
    )


@given(recipe=recipes())
def test_a_recipe_comes_back_from_its_toml_as_it_was(recipe: Recipe):
    assert from_dict(tomllib.loads(tomli_w.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ("500", (500, "steps")),
        ("1", (1, "steps")),
        ("1 step", (1, "steps")),
        ("500 steps", (500, "steps")),
        ("1 epoch", (1, "epochs")),
        (" 3  epochs ", (3, "epochs")),
    ],
)
def test_a_length_has_its_unit(length: str, expected: tuple[int, str]):
    assert parse_steps(length) == expected


@pytest.mark.parametrize("length", ["", "0", "-3", "1e3", "2.5", "epochs", "3 weeks", "3epochs", "٣", "+5", "5 5"])
def test_a_length_that_is_none_is_refused(length: str, make_recipe: MakeRecipe):
    message = r"steps must be a positive number of steps or epochs \('500', '3 epochs'\), not '"
    with pytest.raises(RecipeError, match=message) as refused:
        parse_steps(length)
    assert repr(length) in str(refused.value)
    with pytest.raises(RecipeError, match=message):
        make_recipe(steps=length)


# Refusals


def changed(**sections: Any) -> dict[str, Any]:
    return {**LEAST, **sections}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(trainig={}), r"^Unknown setting 'trainig'; did you mean 'training'\?$"),
        (
            changed(schedule={"learning_rat": 1.0}),
            r"^Unknown setting 'learning_rat' in \[schedule\]; did you mean 'learning_rate'\?$",
        ),
        (
            changed(data={"zzz": 1}),
            r"^Unknown setting 'zzz' in \[data\]; known are "
            + ", ".join(f.name for f in dataclasses.fields(Data))
            + r"\.$",
        ),
        (changed(method={"adam_beta": 0.9}), r"Unknown setting 'adam_beta' in \[method\]; did you mean 'adam_beta"),
        (changed(concepts=[{"tokn": "<t>"}]), r"Unknown setting 'tokn' in \[concepts\.0\]; did you mean 'token'\?"),
        (changed(concepts=[{"token": "<t>"}]), r"^Missing pictures, initializer in \[concepts\.0\]\.$"),
        (changed(base={}), r"^Missing model in \[base\]\.$"),
        ({"base": {"model": "x"}}, r"^Missing concepts\.$"),
        (changed(base="toybox"), r"^\[base\] must be a table of values, not 'toybox'\.$"),
        (changed(concepts=["<t>"]), r"^\[concepts\.0\] must be a table of values, not '<t>'\.$"),
        (changed(concepts={"token": "<t>"}), r"^concepts must be a list, \[\[concepts\]\] in TOML, not \{'token'"),
        (changed(concepts=3), r"^concepts must be a list, \[\[concepts\]\] in TOML, not 3\.$"),
        (changed(method="classic"), r"^\[method\] must be a table of values, not 'classic'\.$"),
        (
            changed(method={"name": "clasic"}),
            rf"^There is no method 'clasic'; the methods are {METHODS}\. Did you mean 'classic'\?$",
        ),
        (
            changed(method={"name": ["classic"]}),
            rf"^There is no method \['classic'\]; the methods are {METHODS}\.$",
        ),
        (changed(training={"seed": "7"}), r"^training\.seed must be of type int, not '7'\.$"),
        (changed(training={"seed": 7.0}), r"^training\.seed must be of type int, not 7\.0\.$"),
        (changed(training={"batch_size": True}), r"^training\.batch_size must be of type int, not True\.$"),
        (changed(schedule={"learning_rate": "5e-3"}), r"^schedule\.learning_rate must be of type float, not '5e-3'\.$"),
        (changed(schedule={"scale_lr": 1}), r"^schedule\.scale_lr must be of type bool, not 1\.$"),
        (changed(schedule={"steps": 2.5}), r"^schedule\.steps must be of type str, not 2\.5\.$"),
        (changed(data={"fit": "stretch"}), r"^data\.fit must be one of 'crop', 'squash', 'bucket', not 'stretch'\.$"),
        (changed(base={"model": 5}), r"^base\.model must be of type str, not 5\.$"),
    ],
)
def test_plain_values_that_are_no_recipe_are_refused_by_name(values: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        from_dict(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_vectors": 0}, r"^num_vectors must be at least 1, but is 0\.$"),
        ({"initializer": " "}, r"^The initializer of '<cat-toy>' is empty; give a word close to it, such as 'toy'\.$"),
        ({"batch_size": 0}, r"^batch_size must be at least 1, but is 0\.$"),
        ({"gradient_accumulation_steps": -1}, r"^gradient_accumulation_steps must be at least 1, but is -1\.$"),
        ({"repeats": 0}, r"^repeats must be at least 1"),
        ({"save_steps": 0}, r"^save_steps must be at least 1"),
        ({"checkpointing_steps": 0}, r"^checkpointing_steps must be at least 1"),
        ({"workers": -1}, r"^workers must be at least 0"),
        ({"lr_warmup_steps": -1}, r"^lr_warmup_steps must be at least 0"),
        ({"learning_rate": -0.1}, r"^learning_rate must be at least 0, but is -0\.1\.$"),
        ({"learning_rate": float("nan")}, r"^learning_rate must be at least 0, but is nan\.$"),
        ({"learning_rate": float("inf")}, r"^learning_rate must be at least 0, but is inf\.$"),
        ({"lr_num_cycles": 0}, r"^lr_num_cycles must be at least 1"),
        ({"lr_power": float("nan")}, r"^lr_power must be at least 0, but is nan\.$"),
        ({"clip_skip": -1}, r"^clip_skip must be at least 0"),
        ({"resolution": 7}, r"^resolution must be at least 8, but is 7\.$"),
        ({"checkpoints_total_limit": 0}, r"^checkpoints_total_limit must be at least 1"),
        ({"gradient_clip": 0.0}, r"^gradient_clip must be above 0, not 0\.0; leave it out for no clipping\.$"),
        ({"gradient_clip": float("nan")}, r"^gradient_clip must be above 0, not nan"),
        ({"seed": -1}, r"^seed must be between 0 and 2\^63 - 1, not -1\.$"),
        ({"seed": 2**63}, r"^seed must be between 0 and 2\^63 - 1, not 9223372036854775808\.$"),
        ({"flip_p": 1.1}, r"^flip_p is a share between 0 and 1, not 1\.1\.$"),
        ({"flip_p": float("nan")}, r"^flip_p is a share between 0 and 1, not nan\.$"),
        ({"caption_dropout": -0.1}, r"^caption_dropout is a share between 0 and 1, not -0\.1\.$"),
        ({"keep_tags": -1}, r"^keep_tags must be at least 0, but is -1\.$"),
        ({"shuffle_tags": True}, r"^shuffle_tags is for captions from files, but captions is 'templates'; make it 'f"),
        (
            {"captions": "files", "templates": "t.txt"},
            r"^captions is 'files', but templates is 't\.txt'; use one of the ",
        ),
        ({"crops": 0}, r"^crops must be at least 1, but is 0\.$"),
        ({"crops": 2, "fit": "squash"}, r"^crops is 2, but fit 'squash' cuts no squares; use fit 'crop' or 1\.$"),
        ({"alpha_colour": "nope"}, r"^alpha_colour is a colour such as 'white', 'green' or '#808080', not 'nope'\.$"),
        ({"alpha_colour": "#ffffff80"}, r"^alpha_colour is a colour such as .*, not '#ffffff80'\.$"),
        (
            {"lr_scheduler": "piecewise_constant"},
            r"^lr_scheduler 'piecewise_constant' and lr_step_rules go together, "
            r"but they are 'piecewise_constant' and None\.$",
        ),
        ({"lr_step_rules": "1:5,0.1"}, r"go together, but they are 'cosine' and '1:5,0\.1'\.$"),
        *(
            (
                {"lr_scheduler": "piecewise_constant", "lr_step_rules": rules},
                r"^lr_step_rules must look like '1:100,0\.1:200,0\.01', not '",
            )
            for rules in ("", "1:5", "1:5,", "1:5,e", "1:x,2", "1;5,2", "1:5.5,2", "-1:5,2", "1:5, 2", "1e:5,1")
        ),
        (
            {"lr_scheduler": "polynomial", "learning_rate": 1e-7},
            r"^'polynomial' decays to 1e-7, so learning_rate must be above 1e-7, but is 1e-07\.$",
        ),
        # Made in Python, a recipe is held to the types and choices of its fields like one from a file.
        (
            {"lr_scheduler": "cosinus"},
            r"^lr_scheduler must be one of 'linear', 'cosine', .* not 'cosinus'\.$",
        ),
        ({"fit": "stretch"}, r"^fit must be one of 'crop', 'squash', 'bucket', not 'stretch'\.$"),
        ({"property": "thing"}, r"^property must be one of 'object', 'style', not 'thing'\.$"),
        ({"mixed_precision": "fp8"}, r"^mixed_precision must be one of 'no', 'fp16', 'bf16', not 'fp8'\.$"),
        (
            {"prediction_type": "sample"},
            r"^prediction_type must be one of 'epsilon', 'v_prediction', not 'sample'",
        ),
        ({"batch_size": 2.5}, r"^batch_size must be of type int, not 2\.5\.$"),
        ({"pictures": Path("cat")}, r"^pictures must be of type str, not .*Path\('cat'\)\.$"),
    ],
)
def test_values_that_cannot_be_carried_out_are_refused(changes: dict[str, Any], message: str, make_recipe: MakeRecipe):
    with pytest.raises(RecipeError, match=message):
        make_recipe(**changes)


def test_values_at_the_ends_of_their_ranges_are_taken(make_recipe: MakeRecipe):
    make_recipe(
        flip_p=0.0, seed=0, resolution=8, clip_skip=0, lr_power=0.0, learning_rate=0.0, workers=0, lr_num_cycles=1
    )
    make_recipe(flip_p=1.0, seed=2**63 - 1)


def test_several_concepts_in_a_run(make_recipe: MakeRecipe):
    recipe = make_recipe()
    two = (recipe.concepts[0], dataclasses.replace(recipe.concepts[0], token="<dog>"))
    both = dataclasses.replace(recipe, concepts=two)
    assert Recipe.from_dict(both.to_dict()) == both
    assert both.alone(two[0]) == recipe
    for section, change, message in [
        ("schedule", {"steps": "3 epochs"}, r"^steps is '3 epochs', but 2 concepts may have epochs of several lengths"),
        ("validation", {"validation_steps": "1 epoch"}, r"^validation_steps is '1 epoch', but 2 concepts may have"),
        ("output", {"push_to_hub": True}, r"^push_to_hub is for a run of one concept, but there are 2; push each wor"),
    ]:
        with pytest.raises(RecipeError, match=message):
            dataclasses.replace(both, **{section: dataclasses.replace(getattr(both, section), **change)})
    with pytest.raises(RecipeError, match=r"^The token '<cat-toy>' is that of several concepts; give each its own\.$"):
        dataclasses.replace(recipe, concepts=(two[0], two[0]))
    with pytest.raises(RecipeError, match=r"^A recipe needs at least one concept: a token, its pictures and an init"):
        dataclasses.replace(recipe, concepts=())
    assert dataclasses.replace(recipe, concepts=[recipe.concepts[0]]).to_dict() == recipe.to_dict()


def test_a_recipe_cannot_be_changed(make_recipe: MakeRecipe):
    recipe = make_recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.base = BaseModel("x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.training.seed = 1


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[base\n", r"^Cannot read the recipe .*recipe\.toml: .*line 1"),
        (b"\xff\xfe", r"^Cannot read the recipe .*recipe\.toml: .*utf-8"),
        (b"[base]\nmodel = 1\n", r"recipe\.toml: Missing concepts\.$"),
        (b"", r"recipe\.toml: Missing concepts, base\.$"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        Recipe.read(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"^Cannot read the recipe .*nowhere\.toml: .*No such file"):
        Recipe.read(tmp_path / "nowhere.toml")


def test_a_token_of_two_words_is_refused_before_anything_is_loaded():
    with pytest.raises(TokenError, match="one word of printable characters without spaces, but is 'my cat'"):
        from_dict({**LEAST, "concepts": [{"token": "my cat", "pictures": "cat", "initializer": "toy"}]})
