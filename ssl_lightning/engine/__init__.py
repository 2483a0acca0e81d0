"""How steps run on hardware."""
