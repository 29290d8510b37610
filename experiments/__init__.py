"""Recipes: the command line, the pipeline of stages, reports and notebooks' loader."""
