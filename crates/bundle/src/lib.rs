//! Files at rest: manifest, digests, limits.
