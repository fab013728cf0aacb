"""How good predictions and embeddings are: pure functions on arrays."""
