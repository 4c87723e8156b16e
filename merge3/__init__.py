"""Evolutionary merging of language models: extract, estimate, evolve."""
