"""Prompts per window: where a prompt's words are, and what each window keeps of them."""
