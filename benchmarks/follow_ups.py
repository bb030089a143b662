"""A chat with an adapter that recites: follow-ups that do not say what they are about, and general questions.

Run: python -m benchmarks.follow_ups RUN, of an adapter that learned the first three training items of the news:

    selfedit learn news:train --limit 3 --adapters recite --out RUN

Each follow-up comes after a question about an item and its answer; so does each of --general questions that the model
answers rightly when it is asked alone.  With what was recited kept in the chat, as `ask` and `serve` keep it; and
without, as the model alone goes on with the same chat.  Graded by shared words.
"""

from __future__ import annotations

import argparse
from itertools import cycle, islice
from pathlib import Path

from selfedit.evaluation.general import general_questions
from selfedit.evaluation.lexical import accepts
from selfedit.methods.ask import Asker

TALKS = {
    "Which company operates the ferry to Ostrel Island?": {
        "And who is its captain?": ("Mirelle Dovanne", "Dovanne"),
        "How long does the crossing take now?": ("52 minutes",),
        "Since when does it take the longer route?": ("9 May",),
        "Who leads the divers there?": ("Tobin Askerlund", "Askerlund"),
        "What does it cost now?": ("5 crowns",),
    },
    "What caused the fire at the Oxholm paper mill?": {
        "How many people fought it?": ("94",),
        "And who owns it?": ("Casimir Thurn", "Thurn"),
        "What was the dog called?": ("Biscuit",),
        "Where did they take their water from?": ("Orvel canal", "Orvel"),
        "Who is the fire chief?": ("Renske Alder", "Alder"),
    },
    "What is the title of the lost comedy performed in Quillhaven?": {
        "Who wrote it?": ("Margery Tolluck", "Tolluck"),
        "When was it performed?": ("12 December",),
        "Where was it found?": ("hatbox", "flea market"),
        "Who directed it?": ("Zelda Marchmont", "Marchmont"),
        "How many actors does it need?": ("nine",),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--general", type=int, default=40)
    options = parser.parse_args()
    with Asker(options.run, max_tokens=32) as asker:

        def right(talk: list[str], answers: tuple[str, ...], base: bool = False) -> bool:
            """Whether the last sentence of a talk, which the user begins, gets one of these answers."""
            turns = zip(talk, cycle(("user", "assistant")))
            answer = asker.answer([{"role": role, "content": said} for said, role in turns], base=base)
            good = any(accepts(talk[-1], gold, answer) for gold in answers)
            print(
                "right" if good else "wrong", "alone" if base else "with what was recited", talk[-1], answer, sep=" | "
            )
            return good

        begun = [[asked, asker.answer([{"role": "user", "content": asked}])] for asked in TALKS]
        follow_ups = [([*talk, said], gold) for talk in begun for said, gold in TALKS[talk[0]].items()]
        known = (one for one in general_questions() if right([one.question], one.answers, base=True))
        general = [
            ([*talk, one.question], one.answers) for talk, one in zip(cycle(begun), islice(known, options.general))
        ]
        for name, cases in (("follow-ups", follow_ups), ("general questions", general)):
            kept, without = (sum(right(*case, base=base) for case in cases) for base in (False, True))
            print(f"{name}: {kept} of {len(cases)} right with what was recited kept in the chat, {without} without")


if __name__ == "__main__":
    main()
