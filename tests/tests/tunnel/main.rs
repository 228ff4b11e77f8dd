//! The tunnel from outside: the binary's node and connector, with UDP and without, and the parsers under fuzz.

mod fallback;
mod fuzz;
mod process;
mod relay;
