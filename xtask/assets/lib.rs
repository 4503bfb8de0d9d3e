//! Empty: the package exists so that cargo fetches its dependencies.
