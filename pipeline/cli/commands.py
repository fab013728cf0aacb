"""All commands: importing their modules adds them to the group."""

from pipeline.cli import analysis, caches, doctor, extract, finetune, heads, label, scout
from pipeline.cli.base import cli

__all__ = ["analysis", "caches", "cli", "doctor", "extract", "finetune", "heads", "label", "scout"]
