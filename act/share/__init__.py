"""Recipes between strangers: pushed without traces of a machine, pulled by hash, reproduced with their results."""
