"""Documents and questions: reading them from files, folders and the hub, sampling, splitting, the built-in news."""

from selfedit.documents.document import Document as Document
from selfedit.documents.document import Question as Question
from selfedit.documents.loading import NEWS_SPLITS as NEWS_SPLITS
from selfedit.documents.loading import LeftOut as LeftOut
from selfedit.documents.loading import load_documents as load_documents
from selfedit.documents.parts import document_parts as document_parts
from selfedit.documents.parts import without_repeats as without_repeats
from selfedit.documents.rows import document_from_row as document_from_row
from selfedit.documents.rows import document_to_row as document_to_row
from selfedit.documents.rows import make_questions as make_questions
from selfedit.documents.splitting import part_spans as part_spans
from selfedit.documents.splitting import sentences as sentences
from selfedit.documents.splitting import sharing_titles as sharing_titles
from selfedit.documents.splitting import split_by_title as split_by_title
from selfedit.documents.written_edits import WrittenEdits as WrittenEdits
from selfedit.documents.written_edits import load_edits as load_edits
