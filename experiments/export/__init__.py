"""A backbone as a folder for other libraries."""
