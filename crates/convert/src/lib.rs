//! Layers to indexes, deterministically, in one pass.
