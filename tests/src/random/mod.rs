//! Random sequences of calls on both ends of a connection, played step by step.
//!
//! * [`operation`]: what a sequence is made of, and its text.
//! * [`agent`]: the process that makes the calls, at one end or at both.
//! * [`model`]: what must be known of the connection so that no call waits for ever and no answer
//!   depends on the kernel's buffers.
//! * [`play`]: starts agents, tells them one call after the other, and writes down what each did.
//!
//! Two plays of one sequence, on kernel TCP and under the library, must write down the same.

pub mod agent;
mod hand;
pub mod model;
pub mod operation;
pub mod play;
mod text;
mod wire;
