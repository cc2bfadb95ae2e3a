//! Traps of a guest, decoded from values: exits, system registers, injected exceptions.
