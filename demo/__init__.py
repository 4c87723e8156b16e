"""The demonstration world: problems in four languages and the experts that solve them."""
