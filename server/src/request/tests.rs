//! The request checks: every bad input, both sides of every bound.
