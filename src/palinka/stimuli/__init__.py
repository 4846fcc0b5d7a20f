"""Texts in which some tokens matter, from YAML to token batches with labels."""
