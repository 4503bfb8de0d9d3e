//! Reads what the machine says about itself.
