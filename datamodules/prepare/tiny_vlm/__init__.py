"""Random vision-language models, to try recipes."""
