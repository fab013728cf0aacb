"""Analyses of a cache other than heads."""
