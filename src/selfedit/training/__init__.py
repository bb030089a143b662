"""From a document and its edits to the engine's token sequences and jobs: cutting, objectives, recipes."""
