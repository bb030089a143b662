-- The tables of a run's store (its version is PRAGMA user_version).  docs/store.md describes them.
-- A task is written in one transaction; a row that is here is done and is not done again.
-- A store whose tables differ from these is refused: every change here raises SCHEMA_VERSION in database.py.
-- A column has the name of the field that it holds (records.py, Document, Question, Edit, Grade).

CREATE TABLE documents (
  position INTEGER PRIMARY KEY,                -- order in the run
  id       TEXT NOT NULL UNIQUE,
  split    TEXT NOT NULL,                      -- 'exam', 'earlier' (learn --add), 'train' or 'validation'
  title    TEXT NOT NULL,
  text     TEXT NOT NULL
);

CREATE TABLE questions (
  position    INTEGER PRIMARY KEY,
  id          TEXT NOT NULL UNIQUE,
  document_id TEXT REFERENCES documents(id),   -- NULL: a general question, which measures forgetting
  question    TEXT NOT NULL,
  answers     TEXT NOT NULL                   -- JSON list of accepted answers
);
CREATE INDEX questions_by_document ON questions(document_id);

CREATE TABLE edits (
  id            TEXT PRIMARY KEY NOT NULL,     -- 'ROUND|DOCUMENT|WRITER|INDEX' ('|' in a part is %7C, '%' is %25)
  round         INTEGER NOT NULL,              -- 0 outside Step B
  document_id   TEXT NOT NULL REFERENCES documents(id),
  writer        TEXT NOT NULL,                 -- the condition
  "index"       INTEGER NOT NULL,              -- counts the edits of one document and writer from 0
  prompt        TEXT NOT NULL,
  text          TEXT NOT NULL,
  truncated     INTEGER NOT NULL,
  dropped_lines INTEGER NOT NULL,
  input_tokens  INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  kept          INTEGER,                       -- Step B: 1 kept by selection, 0 not, NULL not yet decided
  reward        REAL                           -- Step B: mean score of its fits, NULL until known
);
CREATE INDEX edits_by_document ON edits(document_id, writer);

CREATE TABLE fits (
  id           TEXT PRIMARY KEY NOT NULL,      -- 'EDIT_ID|REPLICATE' and two rarer forms: see FitRecord.id
  round        INTEGER NOT NULL,
  condition    TEXT NOT NULL,                  -- 'none': the unadapted model
  document_id  TEXT REFERENCES documents(id),  -- NULL: of several documents, or an exam of general questions
  edit_id      TEXT REFERENCES edits(id),      -- NULL: passage alone, or no adaptation
  replicate    INTEGER NOT NULL,
  status       TEXT NOT NULL CHECK (status IN ('done', 'failed')),
  error        TEXT,                           -- why it failed
  sequences    TEXT NOT NULL,                  -- JSON list of the training texts
  train_tokens INTEGER NOT NULL,               -- real tokens trained on, all epochs
  steps        INTEGER NOT NULL,
  first_loss   REAL,                           -- mean loss (nats per token) of the first and the last epoch
  last_loss    REAL,
  seconds      REAL NOT NULL,                  -- this fit's share of its task's time
  divergence   REAL,                           -- mean KL(policy || adapter) per token of own_texts, nats; NULL: not measured
  answer_loss  REAL,                           -- mean loss per token of right open-book answers, nats; NULL: not measured
  neighbours   INTEGER NOT NULL,               -- answers to questions of other documents, which are kept nowhere
  leaked       INTEGER NOT NULL,               -- those of them that say what is an answer about this fit's document
  leaked_before INTEGER,                       -- the same of the untrained model's answers; NULL: it was not asked
  CHECK (status = 'done' OR error IS NOT NULL)
);
CREATE INDEX fits_by_condition ON fits(round, condition);
CREATE INDEX fits_by_edit ON fits(edit_id);

CREATE TABLE own_texts (                       -- what the model itself wrote to general prompts, without any adapter
  policy    TEXT NOT NULL,                     -- names of the policy's deltas, '/' between them; '' is the base model
  prompt_id TEXT NOT NULL,
  prompt    TEXT NOT NULL,
  text      TEXT NOT NULL,
  ids       TEXT NOT NULL,                     -- JSON list of the text's tokens
  PRIMARY KEY (policy, prompt_id)
);

CREATE TABLE curves (                          -- the losses of fits whose adapters are kept
  fit_id TEXT PRIMARY KEY NOT NULL REFERENCES fits(id),
  points TEXT NOT NULL                       -- JSON list of [step, mean loss since the point before], 200 at most
);

CREATE TABLE answers (
  id          INTEGER PRIMARY KEY,
  fit_id      TEXT NOT NULL REFERENCES fits(id),
  question_id TEXT NOT NULL REFERENCES questions(id),
  text        TEXT NOT NULL,
  tokens      INTEGER NOT NULL,
  topic       TEXT,                            -- that the adapter named, to recite what it learned under it; NULL: none
  UNIQUE (fit_id, question_id)
);

CREATE TABLE grades (
  answer_id INTEGER NOT NULL REFERENCES answers(id),
  grader    TEXT NOT NULL,
  value     TEXT NOT NULL CHECK (value IN ('right', 'wrong', 'ungraded')),
  score     REAL,                              -- in [0, 1]; NULL where ungraded
  note      TEXT NOT NULL,
  PRIMARY KEY (answer_id, grader),
  CHECK ((value = 'ungraded') = (score IS NULL) AND (score IS NULL OR score BETWEEN 0 AND 1))
);

CREATE TABLE rounds (
  round               INTEGER PRIMARY KEY,
  train_reward        REAL,
  validation_accuracy REAL,
  kept_edits          INTEGER,
  checkpoint          TEXT,                    -- path relative to the run directory
  seconds             REAL,
  details             TEXT NOT NULL           -- JSON object: intervals, documents without signal, ...
);

CREATE TABLE wall_time (                       -- time that passed, over all attempts; grows with every commit
  round   INTEGER PRIMARY KEY,                 -- the round that was worked on; 0 outside Step B's rounds
  seconds REAL NOT NULL
);

CREATE TABLE costs (
  id            INTEGER PRIMARY KEY,
  what          TEXT NOT NULL,                 -- 'edits', 'fits', 'answers', 'texts', 'grading', 'outer'
  condition     TEXT NOT NULL,
  round         INTEGER NOT NULL,
  model         TEXT NOT NULL,
  input_tokens  INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  seconds       REAL NOT NULL,                 -- device time
  usd           REAL                           -- NULL: no price known
);

CREATE TABLE api_calls (                       -- every usable reply of an API, by the content of its request
  key           TEXT PRIMARY KEY NOT NULL,     -- sha256 of the canonical JSON request
  model         TEXT NOT NULL,
  request       TEXT NOT NULL,
  response      TEXT NOT NULL,
  input_tokens  INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL
);

CREATE TABLE api_batches (                     -- batches under way, so that a restart goes on polling
  key      TEXT PRIMARY KEY NOT NULL,          -- the request's key, as in api_calls
  batch_id TEXT NOT NULL,
  status   TEXT NOT NULL
);

CREATE TABLE events (                          -- what the report should mention: cut edits, failed fits, warnings
  id      INTEGER PRIMARY KEY,
  kind    TEXT NOT NULL,
  subject TEXT NOT NULL,
  message TEXT NOT NULL,
  UNIQUE (kind, subject, message)              -- a resumed run says a thing once
);
