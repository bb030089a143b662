"""What writes edits, and how an edit becomes training sequences.

Knows prompts for edits, API models, files of edits, prices of tokens.  Knows nothing of fits, exams or the run
directory."""
