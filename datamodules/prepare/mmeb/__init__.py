"""Converters of `prepare mmeb-v2`: local copies of the published data sets -> data roots."""
