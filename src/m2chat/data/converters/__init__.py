"""Everything people have becomes shards: a file a format, and one engine that does the rest."""
