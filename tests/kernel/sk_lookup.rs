//! sk_lookup
