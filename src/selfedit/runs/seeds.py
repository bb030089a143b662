"""Random seeds that derive from what a task is.

A fit's seed is, for instance, `derive_seed(run_seed, "fit", document_id, edit_index, replicate)`.  Never the clock, the
order of work or the worker: so a resumed run, or one split over machines, draws the same numbers.
"""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2**63) from the SHA-256 of the parts.

    Boundaries and types count: ("ab", "c"), ("a", "bc"), ("1",) and (1,) all differ.
    """
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise TypeError(f"a seed derives from strings and whole numbers, not {part!r}")
    # JSON in ASCII: unambiguous, and defined for every Python string.
    digest = hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
