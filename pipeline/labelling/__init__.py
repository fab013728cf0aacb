"""Labelling images in a browser: the server of ``pipeline label``, its journal, and what it shows."""
