"""From images to embeddings: engine and precision are chosen, decoding and the network run side by side."""
