//! The parts together, with real servers.
