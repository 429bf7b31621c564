"""A package of its own name: others install one called tests too."""
