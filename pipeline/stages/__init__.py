"""The stages: extract, fit a head, predict, fine-tune. Each reads what an earlier one wrote."""
