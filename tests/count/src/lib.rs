//! Counts instructions per exception level.
