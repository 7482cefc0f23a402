"""Facts × editor -> store: what is asked for, shard by shard, scored; here or on Ray."""
