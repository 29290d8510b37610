"""Reports as text, HTML and figures."""
