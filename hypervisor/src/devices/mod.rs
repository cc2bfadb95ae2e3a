//! The virtual devices of a guest: pure logic, no register access.
