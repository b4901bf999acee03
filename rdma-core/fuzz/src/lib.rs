//! What the fuzzers run, as plain functions: the crate's tests run them over the corpus too, without
//! a fuzzer (`tests/fuzz_corpus.rs`).

mod control;
mod model;
mod naive_policy;
mod policy;
mod ring;

pub use control::control;
pub use policy::policy;
pub use ring::ring;
