//! Local truth: segments, references, recovery, read-through.
