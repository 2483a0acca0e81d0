"""Pure batched tensor functions: no modules, no state, no config."""
