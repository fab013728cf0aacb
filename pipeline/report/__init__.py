"""Results as pictures and as one self-contained HTML page."""
