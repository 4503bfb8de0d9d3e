//! Connects the core and the plane to the world.
