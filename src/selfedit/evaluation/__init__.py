"""Exams: answers become grades, grades become accuracies with error bars.

Graders (`lexical`, `judge:MODEL`) share one protocol and take strings.  Nothing here imports torch.
"""
