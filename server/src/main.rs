//! `lazaret`: runs untrusted programs in fresh, limited containers, for clients of its HTTP API.

fn main() {}
