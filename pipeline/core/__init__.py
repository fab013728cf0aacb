"""What every other part builds on: items, specs, files, devices. Knows no source, network, engine or cache."""
