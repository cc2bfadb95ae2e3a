//! The QEMU harness and its scenarios.
