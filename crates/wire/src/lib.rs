//! Messages in flight: topics, payloads, versions, JSON Schema.
