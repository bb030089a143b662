"""Holds this package to a clone of SEAL's released code: the same training sequences, prompts and selection.

    python -m benchmarks.check_seal CLONE

It runs one function of the clone, `build_train_sequences`, on every edit that was released, by lines and whole, and
compares its texts with ours; the prompt that is stored with an edit with ours; and, for every stored result of a round,
the best edit of each document with the one that `--ties first` takes.  Nothing is trained.  It prints how many are
equal of how many, and ends with 1 where some are not.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.methods.import_seal import ASKING, EDITS, constants, find_home, import_seal
from selfedit.methods.selection import select
from selfedit.prompts import Prompts
from selfedit.training.cutting import cut
from selfedit.training.recipes import Recipe

LONGEST = 1 << 30  # texts that are cut off in the released code are not compared


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    clone = parser.parse_args(argv).clone
    equal: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    for what, same in comparisons(clone):
        compared[what] += 1
        equal[what] += same
    for what, number in compared.items():
        print(f"{what}: {equal[what]:,} of {number:,} equal")
    return 0 if equal == compared and compared else 1


def comparisons(clone: Path) -> Iterator[tuple[str, bool]]:
    home = find_home(clone)
    with tempfile.TemporaryDirectory() as folder:
        prompts = Prompts(import_seal(clone, Path(folder) / "seal").folder / "prompts.yaml")
    published, most = released_function(home), constants(home / ASKING).get("MAX_TRAIN_SEQS_PER_COMPLETION")
    for file in sorted((home / EDITS).rglob("*.json")):
        for article in json.loads(file.read_text(encoding="utf-8")):
            document = Document("d", article["title"], article["context"])
            for edit in filter(str.strip, article.get("completions") or ()):
                for cutting in ("seal", "seal-whole"):
                    theirs = published(edit, document.text, document.title, split_newlines=cutting == "seal")
                    recipe = Recipe(cutting=cutting, most_texts=most)
                    ours = cut(document, edit.strip(), recipe, max_tokens=LONGEST, count_tokens=len)
                    yield f"sequences ({cutting})", theirs == [f"{one.title}\n{one.text}" for one in ours]
            if asked := article.get("prompt"):
                made = (
                    prompts.edit(name, instruct=False, title=document.title, text=document.text)
                    for name in prompts.edit_names
                )
                yield "prompts", asked in made
    for file in sorted((home / "results").rglob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        for article in result.get("articles", ()) if isinstance(result, dict) else ():
            rewards = [one["stats"].get("adapter_mean", 0.0) for one in article["completions"]]
            edits = [Edit("d", "w", k, "text", output_tokens=-k, reward=reward) for k, reward in enumerate(rewards)]
            (kept,) = select(edits, rule="best-of-k", ties="first").kept
            yield "best edits", kept == edits[rewards.index(max(rewards))].id


def released_function(home: Path) -> Callable[..., Any]:
    """`build_train_sequences` of the clone, with the constants and the functions of its file that it may use: the file
    itself imports what a comparison does not need."""
    tree = ast.parse((home / ASKING).read_text(encoding="utf-8"))
    names = {"build_train_sequences", "_split_segments"}
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
    space: dict[str, Any] = {"re": re, **constants(home / ASKING)}
    exec(compile(tree, str(home / ASKING), "exec"), space)
    found: Callable[..., Any] = space["build_train_sequences"]
    return found


if __name__ == "__main__":
    sys.exit(main())
