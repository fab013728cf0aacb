"""The steps of stage 2, in their order: settings, target, rows, tasks (what is measured), curves, run folder."""
