"""Backbones, heads, decoders, discriminators. Backbones follow timm's `features_only` convention."""
