"""One engine that writes drafts behind prompts, and hidden states at the ends of prompts."""
