"""Prompts of chat models: templates, styles, pictures, examples."""
