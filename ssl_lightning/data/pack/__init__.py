"""The packer of shards: a command, no data set."""
