"""Measurement: what the decisions were worth, from what happened after them."""
