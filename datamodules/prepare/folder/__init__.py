"""Own data: a table of pairs and a folder of media become shards."""
