"""Export of backbones to the formats of other libraries."""
