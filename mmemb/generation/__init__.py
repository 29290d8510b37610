"""How a language model goes on: padding, one draw of a token, caches that grow or are shared."""
