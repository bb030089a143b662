"""What the released code of Zweiger et al. 2025 (arXiv 2506.10943) learns of an edit: its rule, in our words.

docs/fidelity.md says where it differs from the other ways of cutting.
"""

from __future__ import annotations

import re

_CONCLUSIONS = re.compile(r"\nImplications:\s*")
_QUESTION = re.compile(r"Question\s+\d+:")
_NEXT_QUESTION = re.compile(r"\n(?=Question\s+\d+:)")
_ANSWER = re.compile(r"Answer\s*:")


def seal_texts(edit: str, *, by_line: bool, most: int | None = None) -> list[str]:
    """The texts of an edit as it was written, at most so many.

    What is thought aloud before a line "Implications:" is left out, and "---" parts texts.  `by_line`: where questions
    are numbered and answered, each of them with its answer is a text (the first may lack its number, which stood in the
    prompt); elsewhere each line is one, and the first is left out where the second begins with "1.", since it only
    announces the list.
    """
    if conclusions := _CONCLUSIONS.search(edit):
        edit = edit[conclusions.end() :].lstrip()
    texts = [part.strip() for part in edit.split("---") if part.strip()]
    if by_line and _QUESTION.search(edit) and _ANSWER.search(edit):
        texts = _NEXT_QUESTION.split(edit.strip())
        if not texts[0].startswith("Question"):
            texts[0] = f"Question 1: {texts[0].strip()}"
    elif by_line:
        texts = [line.strip() for part in texts for line in part.splitlines() if line.strip()]
        if len(texts) > 1 and texts[1].startswith("1."):
            texts = texts[1:]
    return [text for text in texts[:most] if text.strip()]
