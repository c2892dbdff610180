"""Records become events in columns, events fold into shards, shards emit cell changes. Pure: time is an argument."""
