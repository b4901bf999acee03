//! What the fuzzers run, as plain functions: the crate's tests run them over the corpus too, without
//! a fuzzer (`tests/fuzz_corpus.rs`).

#[cfg(feature = "link")]
mod channel;
mod control;
#[cfg(feature = "link")]
mod link;
mod model;
mod naive_policy;
mod policy;
mod ring;
#[cfg(feature = "link")]
mod wire;

#[cfg(feature = "link")]
pub use channel::channel;
pub use control::control;
#[cfg(feature = "link")]
pub use link::link;
pub use policy::policy;
pub use ring::ring;
#[cfg(feature = "link")]
pub use wire::wire;
