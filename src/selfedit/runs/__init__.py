"""What a run leaves on the disk: its directory, store, lock, summary and ledger of costs."""
