"""Shared by all other parts: items, specs, files, devices. Depends on no source, network, engine or cache."""
