"""Pictures of any format into 8-bit RGB, resized within bounds."""
