"""Language models that learn by teaching themselves."""
