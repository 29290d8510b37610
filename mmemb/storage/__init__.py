"""Files, folders and shards: written whole, read with checks, traced to what made them."""
