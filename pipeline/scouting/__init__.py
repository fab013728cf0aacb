"""Which of several networks, and which of their layers, are best for these images."""
