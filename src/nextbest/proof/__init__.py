"""Proof of worth: a project's own decision log, data and models brought to `measure`."""
