"""Command that packs image files into shards."""
