"""Text into token shards, and shards into microbatches. Not what is learned from them (train)."""
