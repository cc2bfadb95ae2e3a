//! The carve-out oracle.
