"""What every family, method and engine promises, whatever is in the tables; adding one needs no line here."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from pseudoword import Concept, Recipe, TextualInversionDataset, families, train
from pseudoword.engines import ENGINES
from pseudoword.evaluate.fixed_draw import fixed_draw_loss
from pseudoword.families import FAMILIES
from pseudoword.generate import Sampling, generate
from pseudoword.methods import METHODS, OPTIONS
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import encode_all, lent_words
from tests.miniatures import TOKEN, MakeRecipe, hashes


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def own_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A miniature of each family."""
    folder = tmp_path_factory.mktemp(f"base-{request.param}")
    families.part(request.param, "miniature").write(folder)
    return BaseModel(str(folder), family=request.param)


@pytest.fixture(params=itertools.product(sorted(METHODS), ENGINES), ids="-".join)
def recipe(request: pytest.FixtureRequest, own_base: BaseModel, make_recipe: MakeRecipe) -> Recipe:
    """A recipe for each family, method and engine."""
    method, engine = request.param
    made = make_recipe(steps="20", num_vectors=2, learning_rate=0.02, checkpointing_steps=9, engine=engine)
    return dataclasses.replace(made, base=own_base, method=OPTIONS[method]())


def elsewhere(recipe: Recipe, folder: Path) -> Recipe:
    return dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, folder=str(folder)))


def test_lending_leaves_every_module_bit_identical(own_base: BaseModel) -> None:
    family = families.part(own_base.family, "torch").FAMILY.load(own_base)
    before = hashes(family)
    names = [name for module in family.modules.values() for name, _ in module.named_modules()]
    rows = {e: np.ones((2, v.table.shape[1]), dtype=np.float32) for e, v in family.vocabularies.items()}
    with lent_words(family.vocabularies, [Concept(TOKEN, rows)]) as lent:
        ids = encode_all(family.vocabularies, [f"a {TOKEN}"])
        family.prompt_inputs(ids, ids, lent)
    assert hashes(family) == before
    assert [name for module in family.modules.values() for name, _ in module.named_modules()] == names
    assert all(v.rows_lent == 0 for v in family.vocabularies.values())


def test_twenty_steps_on_one_picture_lower_the_fixed_draw_loss(
    recipe: Recipe, own_base: BaseModel, pictures: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "0.png").write_bytes((pictures / "0.png").read_bytes())
    [wanted] = recipe.concepts
    recipe = dataclasses.replace(recipe, concepts=(dataclasses.replace(wanted, pictures=str(one)),))
    list(train(recipe))
    family = families.part(own_base.family, "torch").FAMILY.load(own_base)
    untrained = {e: v.initial_rows(wanted.initializer, 2)[0] for e, v in family.vocabularies.items()}
    data = TextualInversionDataset(one, None, size=family.resolution, placeholder_token=TOKEN, center_crop=True)
    before = fixed_draw_loss(family, Concept(TOKEN, untrained), data)
    after = fixed_draw_loss(family, Concept.load(recipe.output.folder), data)
    assert after < before
    assert fixed_draw_loss(family, Concept.load(recipe.output.folder), data) == after, "the draws are fixed"


def test_resuming_changes_no_bit(recipe: Recipe, tmp_path: Path) -> None:
    list(train(recipe))
    broken = elsewhere(recipe, tmp_path / "broken")
    run = train(broken)
    for _ in range(13):
        next(run)
    run.close()
    assert next(iter(train(broken, resume="latest"))).step == 10
    list(train(broken, resume="latest"))
    straight, resumed = Concept.load(recipe.output.folder), Concept.load(tmp_path / "broken")
    assert {e: r.tobytes() for e, r in straight.rows.items()} == {e: r.tobytes() for e, r in resumed.rows.items()}


def test_the_word_round_trips_and_changes_the_picture(recipe: Recipe, own_base: BaseModel, tmp_path: Path) -> None:
    list(train(recipe))
    word = Concept.load(recipe.output.folder)
    again = Concept.load(word.save(tmp_path / "again.safetensors"))
    assert (again.token, again.property, again.steps) == (TOKEN, "object", 20)
    assert all(np.array_equal(again.rows[e], rows) for e, rows in word.rows.items())
    family = families.part(own_base.family, "torch").FAMILY.load(own_base)
    sampling = Sampling(steps=2)
    [with_word] = generate(family, [word], [f"a photo of a {TOKEN}"], sampling=sampling)
    [without] = generate(family, [], ["a photo of a toy"], sampling=sampling)
    assert with_word.tobytes() != without.tobytes()


def test_the_files_load_in_the_familys_own_pipeline_one_encoder_at_a_time(recipe: Recipe, own_base: BaseModel) -> None:
    list(train(recipe))
    pipeline = DiffusionPipeline.from_pretrained(own_base.model)
    word, folder = Concept.load(recipe.output.folder), Path(recipe.output.folder)
    for rows, suffix in zip(word.rows.values(), ("", "_2"), strict=False):
        tokenizer, encoder = (getattr(pipeline, name + suffix) for name in ("tokenizer", "text_encoder"))
        file = folder / f"learned_embeds{suffix}.safetensors"
        pipeline.load_textual_inversion(file, tokenizer=tokenizer, text_encoder=encoder)
        table = encoder.get_input_embeddings().weight.detach().numpy()
        assert np.array_equal(table[tokenizer.convert_tokens_to_ids(word.tokens)], rows)
