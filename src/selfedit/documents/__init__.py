"""Documents and questions: reading them from files, folders and the hub, sampling, splitting, the built-in news."""

from selfedit.documents.document import Document, Question
from selfedit.documents.loading import NEWS_SPLITS, LeftOut, load_documents
from selfedit.documents.parts import document_parts, without_repeats
from selfedit.documents.rows import document_from_row, document_to_row, make_questions
from selfedit.documents.splitting import part_spans, sharing_titles, split_by_title
from selfedit.documents.written_edits import WrittenEdits, load_edits

__all__ = [
    "NEWS_SPLITS",
    "Document",
    "LeftOut",
    "Question",
    "WrittenEdits",
    "document_from_row",
    "document_parts",
    "document_to_row",
    "load_documents",
    "load_edits",
    "make_questions",
    "part_spans",
    "sharing_titles",
    "split_by_title",
    "without_repeats",
]
