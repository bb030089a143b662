-- The store of one run (schema version 1, kept in PRAGMA user_version).  docs/store.md describes it.
-- A task is written in one transaction; a row that is here is done and is not done again.
-- All of it is executed whenever a run is opened for writing: a table that came later is added to an older run.
-- Every random seed derives from what the row is (see runs/seeds.py), never from the clock or the order.

CREATE TABLE IF NOT EXISTS documents (
  id        TEXT PRIMARY KEY,
  position  INTEGER NOT NULL,            -- order in the run
  split     TEXT NOT NULL,               -- 'exam' (compare, learn), 'train', 'validation', 'test'
  title     TEXT NOT NULL,
  text      TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS questions (
  id          TEXT PRIMARY KEY,
  document_id TEXT REFERENCES documents(id),  -- NULL: a general question, asked to measure forgetting
  position    INTEGER NOT NULL,
  question    TEXT NOT NULL,
  answers     TEXT NOT NULL                  -- JSON list of accepted answers
);
CREATE INDEX IF NOT EXISTS questions_by_document ON questions(document_id);

CREATE TABLE IF NOT EXISTS edits (
  id            TEXT PRIMARY KEY,            -- 'ROUND|DOCUMENT|WRITER|INDEX' ('|' in a part is %7C, '%' is %25)
  round         INTEGER NOT NULL DEFAULT 0,  -- 0 outside Step B
  document_id   TEXT NOT NULL REFERENCES documents(id),
  writer        TEXT NOT NULL,               -- the condition
  idx           INTEGER NOT NULL,
  prompt        TEXT NOT NULL,
  text          TEXT NOT NULL,
  truncated     INTEGER NOT NULL,
  dropped_lines INTEGER NOT NULL,
  input_tokens  INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  kept          INTEGER,                     -- Step B: 1 kept by selection, 0 not, NULL not yet decided
  reward        REAL,                        -- Step B: mean exam score of its fits, NULL until known
  UNIQUE (round, document_id, writer, idx)
);
CREATE INDEX IF NOT EXISTS edits_by_document ON edits(document_id, writer);

CREATE TABLE IF NOT EXISTS fits (
  id           TEXT PRIMARY KEY,             -- 'EDIT_ID|REPLICATE' and three rarer forms: see fit_id in runs/records.py
  round        INTEGER NOT NULL DEFAULT 0,
  condition    TEXT NOT NULL,                  -- 'none': the exam of the unadapted model
  document_id  TEXT REFERENCES documents(id),  -- NULL: the adapter learned all documents, or there is no adapter
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
  CHECK (status = 'done' OR error IS NOT NULL)
);
CREATE INDEX IF NOT EXISTS fits_by_condition ON fits(round, condition);
CREATE INDEX IF NOT EXISTS fits_by_edit ON fits(edit_id);

CREATE TABLE IF NOT EXISTS curves (            -- the losses of fits whose adapters are kept
  fit_id TEXT PRIMARY KEY REFERENCES fits(id),
  points TEXT NOT NULL                         -- JSON list of [step, mean loss since the point before], 200 at the most
);

CREATE TABLE IF NOT EXISTS answers (
  id          INTEGER PRIMARY KEY,
  fit_id      TEXT NOT NULL REFERENCES fits(id),
  question_id TEXT NOT NULL REFERENCES questions(id),
  text        TEXT NOT NULL,
  tokens      INTEGER NOT NULL,
  UNIQUE (fit_id, question_id)
);

CREATE TABLE IF NOT EXISTS grades (
  answer_id INTEGER NOT NULL REFERENCES answers(id),
  grader    TEXT NOT NULL,
  value     TEXT NOT NULL CHECK (value IN ('right', 'wrong', 'ungraded')),
  score    REAL,                              -- in [0, 1]; NULL where ungraded
  note      TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (answer_id, grader),
  CHECK ((value = 'ungraded') = (score IS NULL) AND (score IS NULL OR score BETWEEN 0 AND 1))
);

CREATE TABLE IF NOT EXISTS rounds (
  round               INTEGER PRIMARY KEY,
  train_reward        REAL,
  validation_accuracy REAL,
  kept_edits          INTEGER,
  checkpoint          TEXT,                    -- path relative to the run directory
  seconds             REAL,
  details             TEXT NOT NULL DEFAULT '{}'  -- JSON: intervals, documents without signal, ...
);

CREATE TABLE IF NOT EXISTS wall_time (         -- time that passed, over all attempts; grows with every commit
  round   INTEGER PRIMARY KEY,                 -- the round that was worked on; 0 outside Step B's rounds
  seconds REAL NOT NULL
);

CREATE TABLE IF NOT EXISTS costs (
  id            INTEGER PRIMARY KEY,
  what          TEXT NOT NULL,                 -- 'edits', 'fits', 'answers', 'grading', 'outer'
  condition     TEXT NOT NULL,
  round         INTEGER NOT NULL DEFAULT 0,
  model         TEXT NOT NULL DEFAULT '',
  input_tokens  INTEGER NOT NULL DEFAULT 0,
  output_tokens INTEGER NOT NULL DEFAULT 0,
  seconds       REAL NOT NULL DEFAULT 0,       -- device time
  usd           REAL                           -- NULL: no price known
);

CREATE TABLE IF NOT EXISTS api_calls (                       -- everything an API returned, cached by the content of the request
  key           TEXT PRIMARY KEY,              -- sha256 of the canonical JSON request
  model         TEXT NOT NULL,
  request       TEXT NOT NULL,
  response      TEXT NOT NULL,
  input_tokens  INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS api_batches (                     -- batches under way, so that a restart goes on polling
  key        TEXT PRIMARY KEY,                 -- the request's key, as in api_calls
  batch_id   TEXT NOT NULL,
  status     TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS events (                          -- what the report should mention: cut edits, failed fits, warnings
  id      INTEGER PRIMARY KEY,
  kind    TEXT NOT NULL,
  subject TEXT NOT NULL,
  message TEXT NOT NULL,
  UNIQUE (kind, subject, message)              -- a resumed run says a thing once
);
