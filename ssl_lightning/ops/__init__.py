"""Pure batched tensor functions, without modules, state or config."""
