"""A client of chat servers, with bounds of time and size."""
