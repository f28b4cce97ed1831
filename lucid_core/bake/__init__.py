"""The colours of a splat as the texture of a mesh."""
