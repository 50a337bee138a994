"""What an embedding file is, for which base and for which tools, and how its rows compare with a base's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import families, formats, toybox
from pseudoword.concept import Concept
from pseudoword.contents import Contents
from pseudoword.encoders import base_of
from pseudoword.families.locate import locate
from pseudoword.formats.tools import TOOLS, Verdict
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import Vocabulary


def inspect(path: str | Path, base: BaseModel | None = None) -> list[dict[str, Any]]:
    """Return what each word of a file is, as plain values.

    FormatError or TokenError says what is wrong with the file or with the base.
    """
    file = formats.find(formats.fetched(path))
    contents = formats.open_file(file)
    concepts = formats.concepts_of(contents, file)
    of_file = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "format": "checkpoint" if formats.is_checkpoint(file.parent) else formats.identify(contents, file),
        "container": contents.container,
        "numbers": sorted(set(contents.dtypes.values())),
    }
    tools = _tools(file, contents, len(concepts[0].rows))  # a file of several words is of one kind
    for export in formats.exports_in(file.parent) if file != Path(path) else ():  # a run's files for other tools
        tools = _tools_of_export(export, tools)
    against = None if base is None else vocabularies_of(base)
    return [
        {**of_file, **_word(concept, contents), "tools": tools, **_against(concept, base, against)}
        for concept in concepts
    ]


def vocabularies_of(base: BaseModel) -> Mapping[str, Vocabulary]:
    """Return a base's vocabularies by text encoder, without its other weights."""
    base = locate(base, toybox.BASES)
    return families.part(base.family, "words").vocabularies(base)


def _word(concept: Concept, contents: Contents) -> dict[str, Any]:
    widths = {encoder: rows.shape[1] for encoder, rows in concept.rows.items()}
    return {
        "token": concept.token,
        "property": concept.property,
        "vectors": concept.num_vectors,
        "vectors_of": concept.vectors,
        "widths": widths,
        "norms": {encoder: _rounded(np.linalg.norm(rows, axis=1)) for encoder, rows in concept.rows.items()},
        "for": base_of(widths, {**contents.metadata, **concept.metadata, "base": concept.base}),
        "base": concept.base or None,
        "steps": concept.steps or None,
        "metadata": dict(concept.metadata),
    }


def _tools(file: Path, contents: Contents, encoders: int) -> dict[str, dict[str, Any]]:
    """Return each tool's verdict on the file, and where its rules stand."""
    found, parts = {}, len(formats.parts_of(file))
    for name, tool in TOOLS.items():
        verdict = tool.verdict(contents, file.name)
        if formats.is_checkpoint(file.parent):
            verdict = Verdict(False, f"reads no checkpoints of a run; convert --to {name} makes a file of it")
        elif encoders > 1 and parts > 1 and name != "diffusers":
            verdict = Verdict(False, f"loads one file, and this word has {parts}; convert --to {name} joins them")
        found[name] = {"title": tool.title, "loads": verdict.loads, "says": verdict.says, "source": tool.source}
        if verdict.loads:
            found[name] |= {"trigger": verdict.trigger, "note": verdict.note}
            found[name] |= {"place": tool.place, "needs": verdict.needs}
    return found


def _tools_of_export(export: Path, tools: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each tool's verdict on a run's file for other tools where it loads that, or on its other files.

    Those that a run leaves beside it are for diffusers.
    """
    contents = formats.open_file(export)
    concepts = formats.concepts_of(contents, export)
    judged = {}
    for name, verdict in _tools(export, contents, len(concepts[0].rows)).items():
        of_export = {**verdict, "file": f"{export.parent.name}/{export.name}"}
        loads_other = tools[name]["loads"] and (name == "diffusers" or "file" in tools[name])
        judged[name] = tools[name] if loads_other else of_export
    return judged


def _against(concept: Concept, base: BaseModel | None, vocabularies: Mapping[str, Vocabulary] | None) -> dict[str, Any]:
    """Return what a base's vocabulary says of the word; nothing without a base."""
    if base is None or vocabularies is None:
        return {}
    beside = {encoder: _beside(v, v.rows_of(concept, encoder)) for encoder, v in vocabularies.items()}
    return {"against": base.model, "vocabulary": beside}


def _beside(vocabulary: Vocabulary, rows: np.ndarray) -> dict[str, Any]:
    """Return the vocabulary's norms and each row's nearest words."""
    norms = np.linalg.norm(vocabulary.table, axis=1)
    nearest = [[[name, round(cosine, 4)] for name, cosine in vocabulary.nearest(row)] for row in rows]
    mean, low, high = float(norms.mean()), *np.percentile(norms, (1, 99)).tolist()
    return {
        "mean_norm": round(mean, 4),
        "usual_norms": [round(low, 4), round(high, 4)],
        "norm_ratio": _rounded(np.linalg.norm(rows, axis=1) / mean),
        "nearest": nearest,
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
