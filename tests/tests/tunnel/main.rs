//! The tunnel from outside: the binary's node and connector, and the parsers under fuzz.

mod fuzz;
mod process;
mod relay;
