"""What writes edits: this or another model, an API, a file; with API clients and prices of tokens."""
