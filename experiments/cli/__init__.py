"""The command line of one stage: parser, checks of settings, resume."""
