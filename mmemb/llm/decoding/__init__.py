"""Decoding of many drafts for one prompt, and hidden states of prompts."""
