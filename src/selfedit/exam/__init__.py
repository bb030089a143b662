"""Exams: answers become verdicts, verdicts become scores with error bars.

Graders (`lexical`, `calibrated`, `judge:MODEL`) share one protocol and know strings only.  Nothing here imports torch.
"""
