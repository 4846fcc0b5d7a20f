"""Evaluation of dictionaries, with intervals and controls."""
