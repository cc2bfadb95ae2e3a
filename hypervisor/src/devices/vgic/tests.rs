//! The rules of the GIC.
