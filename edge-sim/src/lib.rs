//! Emulates constrained devices.
